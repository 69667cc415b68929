"""How the prompts' own texts continue: the fixed text of a study, beside what the target writes (floor 6)."""

from collections.abc import Iterator, Sequence
from typing import Any

from tempspec.data.encoding import Encoder
from tempspec.data.prompts import Prompt, PromptSource
from tempspec.data.skipped import Skipped
from tempspec.data.sources import form_of, read
from tempspec.errors import UserError
from tempspec.models.digests import tokenizer_digest

__all__ = ["continuations"]


def continuations(
    source: PromptSource, prompts: Sequence[Prompt], encoder: Encoder, tokens: int
) -> list[dict[str, Any]]:
    """A pair for each prompt: its ids and those that follow it in its file, with the columns of generated text.

    Args:
        source: where the prompts were read from.
        prompts: that were read from it.
        encoder: the tokenizer that they were read with.
        tokens: the most tokens of a continuation.

    Raises:
        UserError: the file holds prompts alone.
    """
    wanted = {prompt.ids for prompt in prompts}
    digest = tokenizer_digest(encoder.tokenizer)
    found: dict[tuple[int, ...], list[int]] = {}
    for prompt, rest in _pairs(source, encoder):
        if prompt in wanted and rest:
            found.setdefault(prompt, rest[:tokens])
    if not found:
        raise UserError(
            f"{source.path}: expected texts that continue the prompts, got none: set fixed: sampled, to take what "
            "the target writes at the reference temperature"
        )
    decode = encoder.tokenizer.decode
    return [
        {
            "prompt": decode(prompt),
            "response": decode(rest),
            "prompt_ids": list(prompt),
            "response_ids": rest,
            "tokenizer": digest,
        }
        for prompt, rest in found.items()
    ]


def _pairs(source: PromptSource, encoder: Encoder) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Prompt and rest of every row."""
    dataset = read(PromptSource(**(vars(source) | {"limit": None})), need_response=False, skipped=Skipped())
    form = form_of(dataset)
    for row in dataset:
        if form == "text":
            (ids,) = encoder.documents([row["text"]])
            yield tuple(ids[: source.prompt_tokens]), ids[source.prompt_tokens :]
        elif row.get("response"):
            (ids,) = encoder.prompts([row["prompt"] + source.separator])
            yield tuple(ids), encoder.following(ids, row["response"], ended=True)
