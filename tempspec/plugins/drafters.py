"""The built-in drafters (floor 3).

Axes: B batch, T positions, K drafted, V vocabulary, N tokens of an n-gram.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from tempspec.core import hosts
from tempspec.core.suffixes import suffix_draft
from tempspec.errors import UserError
from tempspec.interfaces import Draft, DraftContext, Drafter, DraftLength

FEW_ROWS = 4
"""Rows that may all have stopped before the longest draft, so that a GPU is asked after every token."""

__all__ = ["CausalLM", "EarlyExit", "PromptLookup", "Speculator", "SuffixLookup"]


class CausalLM(Drafter):
    """Drafts with a causal language model, one token at a time, sampled at the request's draft temperature.

    Rows that have stopped are fed on with the batch, and what they draft then lies after their length. Once all have
    stopped no more is drafted, but on a GPU more than four rows are not asked. The model is not called where no row may
    draft, nor after the last token.
    """

    needs_model: ClassVar[bool] = True
    source: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318"

    def propose(self, context: DraftContext) -> Draft:
        """See `Drafter.propose`."""
        return _sampled(context)


class Speculator(Drafter):
    """Drafts with a head on the target's hidden states, one token at a time, sampled at the request's temperature.

    Serves every kind of head, `model.head`. The pass that verifies hands out the states, so that the target runs once a
    round. A row of one token has no state yet, and drafts nothing in its first round.
    """

    needs_model: ClassVar[bool] = True
    drafts_with = frozenset({"head"})
    source: ClassVar[str] = "Cai et al. 2024, Medusa, arXiv 2401.10774; Li et al. 2025, EAGLE-3, arXiv 2503.01840"

    def propose(self, context: DraftContext) -> Draft:
        """See `Drafter.propose`."""
        return _sampled(context)


class EarlyExit(Drafter):
    """Drafts with the target's first layers, its final norm and its head: no draft model, nothing to train.

    The layers are the target's own, with a key-value cache for drafting. An untrained exit agrees with the full model
    only where the late layers change little; a target trained for it (LayerSkip) agrees far more often.

    Args:
        layers: how many of the target's layers, at least 1.
    """

    source: ClassVar[str] = "Elhoushi et al. 2024, LayerSkip, arXiv 2404.16710; Zhang et al. 2023, arXiv 2309.08168"

    def __init__(self, layers: int = 1) -> None:
        if layers < 1:
            raise UserError(f"EarlyExit: layers must be 1 or more, got {layers}")
        self.target_layers = layers

    def propose(self, context: DraftContext) -> Draft:
        """See `Drafter.propose`."""
        return _sampled(context)


class PromptLookup(Drafter):
    """Copies what followed the last few tokens where they occurred before; no model, and next to no cost.

    Finds the longest n-gram that ends the text and occurs earlier in it too, goes to that place and copies on from
    there, never past the text's end: the draft is deterministic and q one-hot. Rows without a match draft nothing.

    Args:
        longest_ngram: the most tokens to match, at least 1. vLLM's `prompt_lookup_max`, which is 5 there by default.
        shortest_ngram: the fewest, from 1 to `longest_ngram`. vLLM's `prompt_lookup_min`, 5 there, too.
        match: of several places, the `latest` or the `earliest`, which vLLM and transformers take.
    """

    source: ClassVar[str] = "Saxena 2023, Prompt Lookup Decoding, github.com/apoorvumang/prompt-lookup-decoding"

    def __init__(
        self, longest_ngram: int = 3, shortest_ngram: int = 1, match: Literal["latest", "earliest"] = "latest"
    ) -> None:
        if match not in ("latest", "earliest"):
            raise UserError(f"PromptLookup: match must be latest or earliest, got {match!r}")
        if not 1 <= shortest_ngram <= longest_ngram:
            expected = "1 <= shortest_ngram <= longest_ngram"
            raise UserError(f"PromptLookup: expected {expected}, got {shortest_ngram} and {longest_ngram}")
        self.longest_ngram = longest_ngram
        self.shortest_ngram = shortest_ngram
        self.match = match

    def propose(self, context: DraftContext) -> Draft:
        """See `Drafter.propose`."""
        start_B = self._continuation(context.token_BT, context.length_B)
        length_B = torch.minimum(context.length_B - start_B, context.limit_B)
        longest = int(length_B.max()) if hosts.reads_free(length_B) else context.longest
        if longest == 0:
            return _nothing(context)
        offset_K = torch.arange(longest, device=length_B.device)
        place_BK = (start_B[:, None] + offset_K).clamp(max=context.token_BT.shape[1] - 1)
        real_BK = offset_K < length_B[:, None]
        token_BK = context.token_BT.gather(1, place_BK).masked_fill(~real_BK, 0)
        return _certain(token_BK, length_B, context)

    def _continuation(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Where the copy starts, `[B]`; the row's length where nothing matches."""
        width = self.longest_ngram
        place_T = torch.arange(token_BT.shape[1], device=token_BT.device)
        # gram_BTN[b, t] holds the `width` tokens that end at t; before the text is -1, which matches nothing.
        gram_BTN = torch.nn.functional.pad(token_BT, (width - 1, 0), value=-1).unfold(1, width, 1)
        last_BN = gram_BTN[torch.arange(len(token_BT), device=token_BT.device), length_B - 1]
        equal_BTN = (gram_BTN == last_BN[:, None]) & (gram_BTN >= 0)
        matched_BT = equal_BTN.flip(-1).long().cumprod(-1).sum(-1)
        matched_BT = matched_BT.masked_fill(place_T >= length_B[:, None] - 1, 0)
        # The longest match first, among equals the latest or the earliest.
        rank_T = place_T if self.match == "latest" else place_T.flip(0)
        best_B = (matched_BT * len(place_T) + rank_T).argmax(-1)
        found_B = matched_BT.gather(1, best_B[:, None]).squeeze(1) >= self.shortest_ngram
        return torch.where(found_B, best_B + 1, length_B)


class SuffixLookup(Drafter):
    """Copies what followed most often where its last tokens occurred before; no model, and no fixed n-gram.

    Of n-grams of all lengths that end the text, takes the one whose most frequent continuation promises most accepted
    tokens by its counts: longer matches draft more, rare continuations end a draft. The draft is deterministic and q
    one-hot. Counts are of the request's own text, as in vLLM with `suffix_decoding_max_cached_requests: 0`.

    Args:
        depth: the most tokens of an n-gram and its continuation, at least 2. vLLM's `suffix_decoding_max_tree_depth`.
        factor: drafted tokens for each token of the n-gram, at most; more than 0. vLLM's
            `suffix_decoding_max_spec_factor`.
        least: the share of the n-gram's places that must continue like the draft, 0 to 1. vLLM's
            `suffix_decoding_min_token_prob`.
    """

    source: ClassVar[str] = "Oliaro et al. 2024, SuffixDecoding, arXiv 2411.04975"

    def __init__(self, depth: int = 24, factor: float = 1.0, least: float = 0.1) -> None:
        if depth < 2:
            raise UserError(f"SuffixLookup: depth must be 2 or more, got {depth}")
        if factor <= 0:
            raise UserError(f"SuffixLookup: factor must be more than 0, got {factor}")
        if not 0 <= least <= 1:
            raise UserError(f"SuffixLookup: least must be from 0 to 1, got {least}")
        self.depth = depth
        self.factor = factor
        self.least = least

    def propose(self, context: DraftContext) -> Draft:
        """See `Drafter.propose`."""
        found = [
            suffix_draft(text, limit, self.depth, self.factor, self.least) if limit else []
            for text, limit in context.texts()
        ]
        longest = max(map(len, found))
        if longest == 0:
            return _nothing(context)
        token_BK = context.token_BT.new_tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in found])
        return _certain(token_BK, context.length_B.new_tensor([len(tokens) for tokens in found]), context)


def _sampled(context: DraftContext) -> Draft:
    """A chain sampled from the context's model, one token per step."""
    if context.model is None:
        raise ValueError("the drafter needs a draft model, got none: give the context a model, or use PromptLookup")
    longest = context.longest
    if longest == 0:
        return _nothing(context)
    tokens, laws = [], []
    length_B = context.limit_B
    logits_BV = context.model.catch_up(context.token_BT, context.length_B)
    for count in range(1, longest + 1):
        token_B, logq_BV = context.sample(logits_BV, count - 1)
        tokens.append(token_B)
        laws.append(logq_BV)
        if count == longest:
            break
        proceed_B = context.rule.proceed(token_B, logq_BV)
        if proceed_B is not None:
            length_B = torch.where(proceed_B, length_B, length_B.clamp(max=count))
            if _may_ask(length_B) and not (length_B > count).any():
                break
        logits_BV = context.model.step(token_B)
    return Draft(torch.stack(tokens, 1), length_B, torch.stack(laws, 1))


def _may_ask(length_B: Tensor) -> bool:
    """Whether to ask the device if all rows have stopped.

    A GPU makes the host wait for the answer, which is worth a step of the draft. Many rows hardly ever stop together.
    """
    return hosts.reads_free(length_B) or len(length_B) <= FEW_ROWS


def _nothing(context: DraftContext) -> Draft:
    """A draft of no tokens, K = 0."""
    token_BK = context.token_BT[:, :0]
    law_BKV = torch.zeros(len(token_BK), 0, context.vocabulary, dtype=torch.float32, device=token_BK.device)
    return Draft(token_BK, torch.zeros_like(context.length_B), law_BKV)


def _certain(token_BK: Tensor, length_B: Tensor, context: DraftContext) -> Draft:
    """A draft that was copied, ended where the rule says."""
    draft = Draft.certain(token_BK, length_B, context.vocabulary)
    draft.length_B = _stopped(draft, context.rule)
    return draft


def _stopped(draft: Draft, rule: DraftLength) -> Tensor:
    """The length of each row once the rule has looked at its tokens, `[B]`; each row keeps the one it stops after."""
    length_B = draft.length_B
    for count in range(1, draft.token_BK.shape[1]):
        proceed_B = rule.proceed(draft.token_BK[:, count - 1], draft.logq_BKV[:, count - 1])
        if proceed_B is None:
            break
        length_B = torch.where(proceed_B, length_B, length_B.clamp(max=count))
    return length_B
