"""Prompt sets: what generation and evaluation start from (floor 5)."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from tempspec.data.digest import key_of_ids
from tempspec.data.encoding import Encoder
from tempspec.data.readers import RawRow, row_word
from tempspec.data.skipped import Skipped, Unusable
from tempspec.data.sources import CATEGORY, LINE, Source, form_of, messages_of, read
from tempspec.errors import UserError

_TURN_MARK = -1
"""Parts the turns of a conversation in its key; no token has this id."""


@dataclass
class PromptSource(Source):
    """One prompt set: prompts, the questions of conversations, or the beginnings of texts.

    The field's files work as they are. MT-bench and Spec-Bench: `turns` and `category` are found by their names, and so
    are Alpaca's columns and conversations, of which the last answer is left out. Of GSM8K `prompt: question`, of
    HumanEval nothing, of MBPP `prompt: text`.

    Args:
        limit: take only the first `limit` prompts; where rows have a category, so many of each.
        prompt_tokens: of a `text` row, the prompt is its first so many tokens; rows that are not longer are left out.
        max_prompt_tokens: leave out prompts with more tokens; none are by default.
        turns: the column with what the user says in a conversation, a list of texts. Every turn is decoded after the
            model's own answers to the earlier ones.
        category: the column that results are also grouped by; `category` where the file has it.
        chat: put a `prompt` as the user's turn of a conversation, as `turns` always are: under the chat template, or,
            for a tokenizer without one, as `User: PROMPT`, and `Assistant:` on a line of its own.
    """

    limit: int | None = 32
    prompt_tokens: int = 32
    max_prompt_tokens: int | None = None
    turns: str | None = None
    category: str | None = None
    chat: bool = False


@dataclass(frozen=True)
class Prompt:
    """One prompt, or the opening of a conversation of several turns.

    Attributes:
        set: the name of its set.
        index: its place in the set, from 0 without gaps.
        key: a 63-bit hash of its ids, those of all turns: the bootstrap cluster, the same on every machine.
        ids: token ids of the first turn, at least one.
        text: what they say.
        category: what the row says it is, empty where it does not.
        questions: what the user says, turn by turn; empty for a prompt that is no conversation.
        encoder: writes the later turns.
        place: where it was read, as `question.jsonl line 12`.
    """

    set: str
    index: int
    key: int
    ids: tuple[int, ...]
    text: str
    category: str = ""
    questions: tuple[str, ...] = ()
    encoder: Encoder | None = field(default=None, repr=False, compare=False)
    place: str = field(default="", compare=False)

    @property
    def turns(self) -> int:
        """How often the model is asked."""
        return max(len(self.questions), 1)

    def after(self, answers: Sequence[str]) -> tuple[int, ...]:
        """The ids of the turn after these answers, the whole conversation before it included.

        Raises:
            ValueError: the chat template refuses the turns.
        """
        if not answers:
            return self.ids
        assert self.encoder is not None
        return tuple(self.encoder.asking(self.questions[: len(answers) + 1], answers))


def read_prompts(
    name: str,
    source: PromptSource,
    encoder: Encoder,
    cache_dir: str | Path | None = None,
    max_skipped: float = 0.01,
) -> list[Prompt]:
    """Read one prompt set.

    A prompt that occurs twice is kept once: it would share its noise and its cluster with its double. Rows that cannot
    be used, and conversations that the chat template refuses, are counted and left out.

    Args:
        name: what the set is called.
        source: what to read.
        encoder: makes tokens of it.
        cache_dir: where hub data are kept.
        max_skipped: the largest share of rows that may be left out because they cannot be used.

    Raises:
        UserError: a bad option or file, too many rows that cannot be used, or no prompt left, with the reason.
    """
    _check(name, source)
    skipped = Skipped()
    dataset = read(replace(source, limit=None), need_response=False, cache_dir=cache_dir, skipped=skipped)
    if source.chat and form_of(dataset) == "text":
        raise UserError(
            f"prompt set '{name}' ({source.path}): chat expected prompts, got texts, whose beginnings are continued; "
            "leave chat out, or name the column with prompts as prompt"
        )
    rows = len(dataset) + skipped.total
    skipped.check(rows, max_skipped)
    found: dict[int, Prompt] = {}
    kept: Counter[str] = Counter()
    left_out = Skipped()
    word = row_word(source.path)
    for row in dataset:
        category = row.get(CATEGORY) or ""
        if kept[category] == source.limit:
            continue
        place = f"{source.path} {word} {row[LINE]}"
        try:
            prompt = replace(_prompt(name, row, source, encoder), index=len(found), category=category, place=place)
        except ValueError as error:
            fault = error if isinstance(error, Unusable) else Unusable(str(error))
            skipped.add(fault.reason, place, fault.details)
            skipped.check(rows, max_skipped)  # before a template that refuses everything is tried on everything
            continue
        if reason := _reason_against(prompt, source, found):
            left_out.add(reason, place, f"{len(prompt.ids)} tokens")
        else:
            found[prompt.key] = prompt
            kept[category] += 1
    if not found:
        raise UserError(
            f"prompt set '{name}' ({source.path}) is empty: {left_out + skipped}; lower prompt_tokens, raise "
            "max_prompt_tokens, or give other rows"
        )
    if left_out.total or skipped.total:
        told = "; cannot be used: ".join(str(part) for part in (left_out, skipped) if part.total)
        first = f"; the first: {(skipped + left_out).first}"
        rank_zero_info(f"prompt set {name}: {len(found)} prompts; left out: {told}{first}")
    return list(found.values())


def _check(name: str, source: PromptSource) -> None:
    for option in ("prompt_tokens", "max_prompt_tokens", "limit"):
        value = getattr(source, option)
        if value is not None and value < 1:
            raise UserError(f"prompt set '{name}': {option} must be 1 or more, got {value}")
    if source.chat and source.separator:
        raise UserError(f"prompt set '{name}': expected chat or separator, got both: a turn has no separator; drop it")


def _prompt(name: str, row: RawRow, source: PromptSource, encoder: Encoder) -> Prompt:
    """The prompt of a row; ids of a row that asks too little are empty.

    Raises:
        ValueError: the row's conversation asks nothing, or the chat template refuses it.
    """
    if "text" in row:
        return _beginning(name, row["text"], source.prompt_tokens, encoder)
    if "messages" in row:
        messages, tools = messages_of(row)
        return _of_ids(name, encoder.opening(messages, tools), _asked(messages))
    if "turns" in row or source.chat:
        return _conversation(name, row["turns"] if "turns" in row else [row["prompt"]], encoder)
    (ids,) = encoder.prompts([row["prompt"] + source.separator])
    return _of_ids(name, ids, row["prompt"])


def _asked(messages: Sequence[Mapping[str, Any]]) -> str:
    """What was said last before the assistant is to speak.

    Raises:
        ValueError: it is blank.
    """
    content = messages[-2 if messages[-1]["role"] == "assistant" and len(messages) > 1 else -1].get("content")
    text = content if isinstance(content, str) else "" if content is None else json.dumps(content)
    if not text.strip():
        raise ValueError("the last question is blank")
    return text


def _of_ids(name: str, ids: Sequence[int], text: str) -> Prompt:
    return Prompt(name, 0, key_of_ids(ids), tuple(ids), text)


def _beginning(name: str, text: str, tokens: int, encoder: Encoder) -> Prompt:
    (ids,) = encoder.prompts([text])
    ids = ids[:tokens] if len(ids) > tokens else []
    return _of_ids(name, ids, encoder.text(ids))


def _conversation(name: str, questions: Sequence[str], encoder: Encoder) -> Prompt:
    """The opening; all turns are rendered once, so that a template that refuses them says so before anything is run."""
    ids = encoder.asking(questions[:1], [])
    encoder.asking(questions, ["."] * (len(questions) - 1))
    later = encoder.prompts(questions[1:]) if len(questions) > 1 else []
    key = key_of_ids(chain(ids, *([_TURN_MARK, *turn] for turn in later)))
    return Prompt(name, 0, key, tuple(ids), questions[0], questions=tuple(questions), encoder=encoder)


def _reason_against(prompt: Prompt, source: PromptSource, found: Collection[int]) -> str:
    if not prompt.ids:
        return "too short"
    if source.max_prompt_tokens is not None and len(prompt.ids) > source.max_prompt_tokens:
        return f"longer than max_prompt_tokens {source.max_prompt_tokens}"
    return "seen before" if prompt.key in found else ""
