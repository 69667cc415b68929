"""Speculative decoding in one call, without a module, a trainer or a configuration (floor 6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempspec.core.noise import fold
from tempspec.data.digest import key_of_ids
from tempspec.data.encoding import Encoder
from tempspec.decoding.engine import Engine
from tempspec.errors import UserError
from tempspec.interfaces import Completion, Drafter, DraftLength, Request, Verifier
from tempspec.metrics.decoding import AcceptanceRate, BlockEfficiency
from tempspec.metrics.rows import DecodedRow, row_from_completion
from tempspec.metrics.table import Line, ResultTable
from tempspec.models.eagle3 import Eagle3
from tempspec.models.eagle3.files import is_head_folder
from tempspec.models.evaluating import evaluating
from tempspec.models.loading import DType, ModelOptions, load_tokenizer
from tempspec.models.pair import Pair
from tempspec.modules.named import plugin
from tempspec.plugins.lengths import FixedLength

__all__ = ["Decoded", "DecodedPrompt", "decode"]

PromptText = str | Sequence[Mapping[str, Any]]
"""A text to be continued, or the messages of a conversation that waits for its answer."""


@dataclass(frozen=True)
class DecodedPrompt:
    """What was written after one prompt.

    Attributes:
        prompt: as it was given.
        text: the new text, special tokens left out.
        completion: the new tokens and the counts of every round.
    """

    prompt: PromptText
    text: str
    completion: Completion

    @property
    def tokens(self) -> list[int]:
        """The new token ids, the one that ended it included."""
        return self.completion.tokens

    @property
    def finish(self) -> str:
        """`stop` (an end-of-sequence token) or `length`."""
        return self.completion.finish

    @property
    def target_calls(self) -> int:
        """Forward passes of the target after the prompt's."""
        return self.completion.target_calls

    @property
    def drafted(self) -> int:
        """Tokens that were drafted."""
        return sum(self.completion.drafted)

    @property
    def accepted(self) -> int:
        """Drafted tokens that were accepted."""
        return sum(self.completion.accepted)


@dataclass(frozen=True)
class Decoded(Sequence[DecodedPrompt]):
    """What was written, in the prompts' order, with a summary of all.

    Attributes:
        found: one per prompt.
        rows: the same as metrics read it: any of `tempspec.metrics` takes them.
    """

    found: Sequence[DecodedPrompt]
    rows: Sequence[DecodedRow]

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: Any) -> Any:
        """One of them, or several."""
        return self.found[index]

    @property
    def texts(self) -> list[str]:
        """The new texts."""
        return [one.text for one in self.found]

    @property
    def summary(self) -> ResultTable:
        """Acceptance rate and block efficiency over all prompts, with intervals where there are enough of them."""
        rate, efficiency = AcceptanceRate(), BlockEfficiency()
        for metric in (rate, efficiency):
            metric.sync_on_compute = False
            metric.update(*self.rows)
        labels = {"prompts": len(self.found), "tokens": sum(len(one.tokens) for one in self.found)}
        estimates = {"acceptance_rate": rate.estimate(), "block_efficiency": efficiency.estimate()}
        return ResultTable("decoded", [Line(labels, estimates)])


def decode(
    target: str | PreTrainedModel,
    draft: str | PreTrainedModel | int | None,
    prompts: PromptText | Sequence[PromptText],
    temperature: float = 1.0,
    verifier: Verifier | str = "BlockVerification",
    *,
    drafter: Drafter | str | None = None,
    length: DraftLength | str | int = 4,
    draft_temperature: float | None = None,
    max_new_tokens: int = 128,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_at_eos: bool = True,
    seed: int = 0,
    slots: int = 8,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    dtype: DType = "auto",
    device: torch.device | str | None = None,
) -> Decoded:
    """Decode prompts speculatively: the text has the target's own distribution, and the draft makes it fast.

    Args:
        target: folder or hub name of the target, or the loaded model.
        draft: likewise of the draft, or the folder of an EAGLE-3 head; a number takes so many of the target's first
            layers. Without one and without a drafter, the target decodes plainly.
        prompts: a text, or several, to be continued; or messages (`{role, content}`), or several such conversations,
            to be answered under the tokenizer's chat template.
        temperature: of the target; 0 is argmax.
        verifier: the acceptance rule, or its name.
        drafter: what proposes tokens, or its name; the draft by default. `PromptLookup` needs no draft.
        length: how many tokens to draft: a number, or a rule or its name.
        draft_temperature: of the draft; the target's by default.
        max_new_tokens: tokens to write at most.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens with this mass.
        min_p: keep tokens at least this fraction as likely as the most likely one.
        stop_at_eos: end with the model's end-of-sequence token.
        seed: all sampling noise derives from it.
        slots: prompts that are decoded together.
        tokenizer: the target's, or its name; by default what lies beside the target.
        dtype: of models that are loaded here.
        device: where models that are loaded here go: a loaded target's own, else a GPU where there is one.

    Returns:
        A sequence of what was written after each prompt, in their order; with `texts` and `summary`.

    Raises:
        UserError: there is no such model or plugin, models do not fit together, or a prompt cannot be decoded.
        ValueError: a number is out of its range.

    Example:
        ```python
        found = tempspec.decode("models/target", "models/draft", ["Once upon a time"], temperature=1.0)
        print(found[0].text, found.summary)
        ```
    """
    pair = _pair(target, draft, tokenizer, dtype, device)
    model = pair.target_model
    rule = plugin("verifiers", verifier)
    own = None if draft is None else "CausalLM" if pair.head is None else "Speculator"
    proposer = plugin("drafters", own if drafter is None else drafter)
    made = draft if isinstance(draft, PreTrainedModel) else None
    if made is None and proposer is not None and proposer.needs_model:
        made = pair.load_draft(dtype)
    plain = proposer is None
    listed = _listed(prompts)
    encoder = Encoder(pair.tokenizer)
    asked = [_ids(encoder, prompt) for prompt in listed]
    requests = [
        Request(
            tuple(ids),
            target_temperature=temperature,
            draft_temperature=draft_temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            max_new_tokens=max_new_tokens,
            stop_ids=pair.stop_ids if stop_at_eos else frozenset(),
            seed=int(fold(seed, number)),
            key=str(number),
        )
        for number, ids in enumerate(asked)
    ]
    with evaluating(model, made):
        engine = Engine(
            model,
            pair.vocabulary,
            verifier=None if plain else rule,
            drafter=None if plain else proposer,
            length=None if plain else FixedLength(length) if isinstance(length, int) else plugin("lengths", length),
            draft=made,
            slots=min(slots, max(1, len(requests))),
        )
        done = {int(each.request.key): each for each in engine.run(requests)}
    found = [DecodedPrompt(prompt, encoder.text(done[n].tokens), done[n]) for n, prompt in enumerate(listed)]
    label = type(rule).__name__ if not plain else "autoregressive"
    rows = [
        row_from_completion(
            done[number],
            pass_="acceptance",
            label=label,
            prompt_set="prompts",
            prompt_index=number,
            prompt_key=key_of_ids(ids),
            sample=0,
            key=str(number),
        )
        for number, ids in enumerate(asked)
    ]
    return Decoded(found, rows)


def _pair(
    target: str | PreTrainedModel,
    draft: str | PreTrainedModel | int | None,
    tokenizer: PreTrainedTokenizerBase | str | None,
    dtype: DType,
    device: torch.device | str | None,
) -> Pair:
    """Target and tokenizer, loaded where they are not."""
    loaded = not isinstance(target, str)
    name = target if isinstance(target, str) else target.name_or_path
    layers = draft if isinstance(draft, int) else None
    folder = draft if isinstance(draft, str) else None
    head = Eagle3() if folder is not None and is_head_folder(Path(folder).expanduser()) else None
    pair = Pair(name, folder, layers, ModelOptions(dtype=dtype), head=head)
    own = target.device if not isinstance(target, str) else "cuda" if torch.cuda.is_available() else "cpu"
    pair.use(torch.device(own if device is None else device), decoding=True)
    if loaded and not name and tokenizer is None:
        raise UserError("the target does not say where it was loaded from: give its tokenizer, tokenizer=...")
    words = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    pair.hold(pair.target_model if isinstance(target, str) else target, words)
    return pair


def _listed(prompts: PromptText | Sequence[PromptText]) -> list[PromptText]:
    """The prompts as a list: one text and one conversation are one prompt each."""
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Any] = list(prompts)
    if listed and isinstance(listed[0], Mapping):
        return [listed]
    return listed


def _ids(encoder: Encoder, prompt: PromptText) -> list[int]:
    """The token ids of a prompt.

    Raises:
        UserError: it is empty, or the chat template refuses it.
    """
    if isinstance(prompt, str):
        (ids,) = encoder.prompts([prompt])
    elif not encoder.tokenizer.chat_template:
        raise UserError("messages need a chat template, and the tokenizer has none: give texts instead")
    else:
        try:
            ids = encoder.opening([dict(message) for message in prompt])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"expected messages with role and content, got {prompt!r}: {error}") from error
    if not ids:
        raise UserError("expected a prompt with at least one token, got an empty one: leave it out")
    return ids
