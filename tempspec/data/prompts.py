"""Prompt sets: what generation and evaluation start from."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import datasets
from lightning.pytorch.utilities import rank_zero_info

from tempspec.data.digest import key_of_ids
from tempspec.data.encoding import Encoder, Turns, before_answer
from tempspec.data.sources import Source, form_of, read
from tempspec.errors import UserError


@dataclass
class PromptSource(Source):
    """One prompt set: prompts, the questions of conversations, or the beginnings of texts.

    Args:
        limit: take at most so many prompts, from the first row on.
        prompt_tokens: of a `text` row, the prompt is its first so many tokens; rows that are not longer are left out.
        max_prompt_tokens: leave out prompts with more tokens; none are by default.
    """

    limit: int | None = 32
    prompt_tokens: int = 32
    max_prompt_tokens: int | None = None


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        set: the name of its set.
        index: its place in the set, from 0 without gaps.
        key: a 63-bit hash of its ids: the bootstrap cluster, the same on every machine.
        ids: token ids, at least one.
        text: what they say.
    """

    set: str
    index: int
    key: int
    ids: tuple[int, ...]
    text: str


def read_prompts(
    name: str, source: PromptSource, encoder: Encoder, cache_dir: str | Path | None = None
) -> list[Prompt]:
    """Read one prompt set.

    A prompt that occurs twice is kept once: it would share its noise and its cluster with its double.

    Raises:
        UserError: a bad option or file, or no prompt left, with the reason.
    """
    _check(name, source)
    dataset = read(_unlimited(source), need_response=False, cache_dir=cache_dir)
    found: dict[int, tuple[tuple[int, ...], str]] = {}
    lost = {"too short": 0, "too long": 0, "seen before": 0}
    for ids, text in _candidates(dataset, source, encoder):
        if source.limit is not None and len(found) == source.limit:
            break
        reason = _reason_against(ids, source, found)
        if reason:
            lost[reason] += 1
        else:
            found[key_of_ids(ids)] = (ids, text)
    notes = ", ".join(f"{count} {reason}" for reason, count in lost.items() if count)
    if not found:
        raise UserError(
            f"prompt set '{name}' ({source.path}) is empty: {notes}; lower prompt_tokens, raise max_prompt_tokens, "
            "or give other rows"
        )
    if notes:
        rank_zero_info(f"prompt set {name}: {len(found)} prompts; left out: {notes}")
    return [Prompt(name, index, key, *prompt) for index, (key, prompt) in enumerate(found.items())]


def _check(name: str, source: PromptSource) -> None:
    for option in ("prompt_tokens", "max_prompt_tokens", "limit"):
        value = getattr(source, option)
        if value is not None and value < 1:
            raise UserError(f"prompt set '{name}': {option} must be 1 or more, got {value}")


def _unlimited(source: PromptSource) -> Source:
    """The corpus behind a prompt set: its limit counts prompts, not rows."""
    options = {field.name: getattr(source, field.name) for field in fields(Source)}
    return Source(**(options | {"limit": None}))


def _candidates(
    dataset: datasets.Dataset, source: PromptSource, encoder: Encoder
) -> Iterator[tuple[tuple[int, ...], str]]:
    """(ids, text) of every row; ids of a text row that is too short are empty."""
    form = form_of(dataset)
    for number, row in enumerate(dataset, start=1):
        if form == "text":
            (ids,) = encoder.prompts([row["text"]])
            ids = ids[: source.prompt_tokens] if len(ids) > source.prompt_tokens else []
            yield tuple(ids), encoder.text(ids)
        elif form == "messages":
            ids, asked = _asked(source, number, row["messages"], encoder)
            yield tuple(ids), asked
        else:
            (ids,) = encoder.prompts([row["prompt"] + source.separator])
            yield tuple(ids), row["prompt"]


def _asked(source: Source, number: int, turns: Turns, encoder: Encoder) -> tuple[list[int], str]:
    """The ids of a conversation that waits for its answer, and what was said last."""
    try:
        return encoder.opening(turns), before_answer(turns)[-1]["content"]
    except ValueError as error:
        raise UserError(f"{source.path}: conversation {number}: {error}; repair or drop the row") from error


def _reason_against(ids: tuple[int, ...], source: PromptSource, found: dict[int, tuple[tuple[int, ...], str]]) -> str:
    if not ids:
        return "too short"
    if source.max_prompt_tokens is not None and len(ids) > source.max_prompt_tokens:
        return "too long"
    return "seen before" if key_of_ids(ids) in found else ""
