"""What an engine cannot be made of, and requests that it cannot decode: refused before any token (floor 4)."""

from typing import Literal

import torch

from tempspec.errors import UserError
from tempspec.interfaces import Drafter, DraftLength, HeadModel, Request, Verifier
from tempspec.models import compiling
from tempspec.models.compiling import Compile
from tempspec.models.conditioning import is_conditioned

__all__ = ["check_parts", "check_prompt", "check_temperature", "compiles", "drafts_alike"]


def check_parts(
    verifier: Verifier | None, drafter: Drafter | None, length: DraftLength | None, draft: object, slots: int
) -> None:
    """Refuse parts that do not fit together.

    Args:
        verifier: the acceptance rule.
        drafter: what proposes.
        length: how many tokens.
        draft: the draft model; None for none.
        slots: rows of the batch.

    Raises:
        UserError: naming what is missing, or what cannot verify what is drafted.
    """
    if slots < 1:
        raise UserError(f"slots must be 1 or more, got {slots}")
    if drafter is None:
        return
    if verifier is None or length is None:
        raise UserError("a drafter needs a verifier and a draft length, got none: name them")
    if drafter.needs_model and draft is None:
        raise UserError(f"drafter {type(drafter).__name__} needs a draft model, got none: name one")
    given: Literal["language model", "head"] = "head" if isinstance(draft, HeadModel) else "language model"
    if drafter.needs_model and given not in drafter.drafts_with:
        expected, remedy = ("language model", "Speculator") if given == "head" else ("head", "CausalLM")
        raise UserError(f"drafter {type(drafter).__name__} drafts with a {expected}, got a {given}: take {remedy}")
    if drafter.siblings is not None and verifier.shared_noise:
        raise UserError(
            f"{type(verifier).__name__} verifies chains only, got a drafter of trees: siblings are drawn with "
            "their own noise, which the target's samples cannot share: take another verifier, or draft chains"
        )
    if drafter.siblings is not None and drafter.siblings not in verifier.siblings:
        known = ", ".join(sorted(verifier.siblings)) or "chains only"
        raise UserError(
            f"{type(verifier).__name__} verifies trees of siblings drawn as: {known}; got {drafter.siblings!r}: choose "
            "another verifier or way to draw"
        )


def check_prompt(request: Request, context: int, switch: int | None, vocabulary: int) -> None:
    """Refuse a prompt that the target cannot read.

    Args:
        request: what is to be decoded.
        context: the tokens that the target can read.
        switch: the length at which LongRoPE changes its factors; None without.
        vocabulary: the number of real ids.

    Raises:
        UserError: the prompt does not fit the context or the vocabulary; or the row may outgrow the positions in which
            LongRoPE keeps its factors.
    """
    tokens = len(request.prompt)
    if switch is not None and tokens + request.max_new_tokens > switch:
        raise UserError(
            f"prompt {request.key or ''} has {tokens} tokens and may get {request.max_new_tokens} "
            f"more, expected at most {switch} together: there the target changes its LongRoPE factors, for "
            "all rows of a batch; lower max_new_tokens, or leave long prompts out by max_prompt_tokens"
        )
    if tokens >= context:
        raise UserError(
            f"prompt {request.key or ''} has {tokens} tokens, expected fewer than the target's "
            f"context of {context}: shorten it"
        )
    wrong = next((token for token in request.prompt if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise UserError(
            f"prompt {request.key or ''} holds token id {wrong}, expected ids in 0..{vocabulary - 1}: "
            "encode it with the target's tokenizer"
        )


def check_temperature(request: Request, verifier: Verifier | None) -> None:
    """Refuse a temperature that the verifier is not for.

    Raises:
        UserError: it verifies at T = 0 only.
    """
    if verifier is not None and verifier.greedy_only and request.target_temperature > 0:
        raise UserError(
            f"{type(verifier).__name__} verifies at target_temperature 0 only, got "
            f"{request.target_temperature}: choose another verifier"
        )


def compiles(
    choice: Compile, device: torch.device, draft: object = None, length: DraftLength | None = None
) -> bool | Literal["round"]:
    """Whether forward passes are compiled, or whole rounds: by `auto` on a GPU, where the draft can be.

    Args:
        choice: what was asked for.
        device: of the models.
        draft: the draft model or head; None for none.
        length: how many tokens are drafted; where that differs by round, passes are compiled in place of rounds.

    Raises:
        UserError: it was asked for, and the draft cannot be compiled; or rounds were, without a GPU.

    >>> [compiles(choice, torch.device("cpu")) for choice in ("auto", True, False)]
    [False, True, False]
    >>> [compiles(choice, torch.device("cuda")) for choice in ("auto", "round")]
    [True, 'round']
    """
    if choice == "round":
        compiling.recorder(device)
    if choice is False or (choice == "auto" and device.type != "cuda"):
        return False
    conditioned = isinstance(draft, torch.nn.Module) and is_conditioned(draft)
    if not conditioned and not isinstance(draft, HeadModel):
        return "round" if choice == "round" and drafts_alike(length) else True
    if choice == "auto":
        return False
    kind = "conditioned on the temperature" if conditioned else "a head"
    raise UserError(f"a draft that is {kind} cannot be compiled: set compile to false")


def drafts_alike(rule: DraftLength | None) -> bool:
    """Whether a length neither looks at earlier rounds nor stops a draft, so that one recording serves all rounds.

    >>> from tempspec.plugins.lengths import ConfidenceThreshold, FixedLength
    >>> drafts_alike(FixedLength(4)), drafts_alike(ConfidenceThreshold(0.4))
    (True, False)
    """
    asked = ("limit", "for_round", "proceed")
    return rule is None or all(getattr(type(rule), name) is getattr(DraftLength, name) for name in asked)
