"""Which columns of a file are which parts of a row: named by the user, or found by their names (floor 5)."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from tempspec.data import conversations, values
from tempspec.data.json_files import RawRow
from tempspec.data.skipped import Unusable
from tempspec.errors import UserError

__all__ = ["CATEGORY", "EXACT", "FINISH", "TEMPERATURE", "Shape", "names_a_part", "shape_of", "unread_media"]

TEMPERATURE = "generation_temperature"
CATEGORY = "category"
FINISH = "finish"
"""How a generated text ended: `stop`, or `length` where it was cut."""
EXACT = ("prompt_ids", "response_ids", "tokenizer")
"""Columns of generated data: the very tokens of a pair, and the digest of the tokenizer whose ids they are."""

_FORMS = ("text", "prompt", "response", "messages", "turns")
_INSTRUCTION = "instruction"
_PREFERENCES = ("chosen", "rejected")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_NO_TEXT = ("id", "ids", "url", "source", "lang", "language", "hash", "date", "model", "split", *_PREFERENCES)
"""Ends of column names whose texts nobody trains on as they are."""


class Named(Protocol):
    """What a source says about its columns."""

    path: str
    text: str | None
    prompt: str | None
    response: str | None
    messages: str | None


@dataclass(frozen=True)
class Shape:
    """Where the parts of a row are.

    Attributes:
        columns: part -> column: `text`; or `prompt` and perhaps `response`; or `messages`; or `turns`; and `category`.
        need_response: whether a row without a response cannot be used.
        columnar: whether the file gives every object all keys, with null for those that it had not.
    """

    columns: dict[str, str]
    need_response: bool
    columnar: bool

    @property
    def optional(self) -> tuple[str, ...]:
        """The parts of a record that may be None."""
        return (TEMPERATURE, CATEGORY, FINISH, "tools", *EXACT, *([] if self.need_response else ["response"]))

    def record(self, row: RawRow) -> RawRow:
        """The parts of a row in normal form, blank where the row is.

        Raises:
            Unusable: a part is missing, or is not what it must be.
        """
        found = {part: self._part(part, name, row) for part, name in self.columns.items()}
        if "messages" in found:
            found["tools"] = conversations.tools("tools", row.get("tools"), columnar=self.columnar)
        if "response" in found and all(row.get(name) is not None for name in EXACT):
            found |= {name: _exact(name, row[name]) for name in EXACT}
        finish = row.get(FINISH)
        found[FINISH] = finish if isinstance(finish, str) else None
        return found | {TEMPERATURE: values.temperature(TEMPERATURE, row.get(TEMPERATURE))}

    def _part(self, part: str, name: str, row: RawRow) -> Any:
        if part not in self.optional and name not in row:
            raise Unusable(f"{name} is missing")
        value = row.get(name)
        if part == CATEGORY:
            return values.category(name, value)
        if part == "messages":
            return conversations.messages(name, value, system=row.get("system"), columnar=self.columnar)
        if part == "turns":
            return values.turns(name, value)
        if part in self.optional and not (isinstance(value, str) and value.strip() and values.is_unicode(value)):
            return None
        if name == _INSTRUCTION and row.get("input") is not None:
            return _joined(values.text(name, value), values.text("input", row["input"]))
        return values.text(name, value)


def _joined(instruction: str, given: str) -> str:
    """An instruction of Alpaca's kind and what it is about; blank where there is no instruction."""
    return f"{instruction}\n\n{given}" if instruction and given else instruction


def _exact(name: str, value: Any) -> Any:
    return values.ids(name, value) if name.endswith("_ids") else values.text(name, value)


def shape_of(source: Named, rows: Sequence[RawRow], *, need_response: bool, columnar: bool) -> Shape:
    """Find the parts of a corpus' rows.

    Args:
        source: which columns the user names.
        rows: some of the rows, those at the beginning.
        need_response: whether prompts alone are refused.
        columnar: as in `Shape`.

    Raises:
        UserError: a named column is not there, or no column is known.
    """
    found = list(dict.fromkeys(chain(*rows)))
    named = {form: name for form in _FORMS if (name := getattr(source, form, None)) is not None}
    columns = _named(source, named, need_response) if named else _inferred(source, rows, found, need_response)
    category = getattr(source, CATEGORY, None)
    if (category or CATEGORY in found) and not need_response:
        columns[CATEGORY] = category or CATEGORY
    if missing := next((name for name in columns.values() if name not in found), None):
        close = difflib.get_close_matches(missing, found, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(f"{source.path}: no column '{missing}'; {hint}it has {_names(found)}")
    if "prompt" in columns and not need_response and "response" in found:
        columns.setdefault("response", "response")
    return Shape(columns, need_response, columnar)


def names_a_part(source: Named, row: RawRow) -> bool:
    """Whether an object has a column that may be a part of a row."""
    known = {*_FORMS, _INSTRUCTION, "conversations"} | {getattr(source, form, None) for form in _FORMS}
    return not known.isdisjoint(row)


def unread_media(rows: Sequence[RawRow]) -> list[str]:
    """The columns that hold images, sound or films, which nothing here reads."""
    return [name for name in _MEDIA if any(row.get(name) for row in rows)]


def _named(source: Named, named: dict[str, str], need_response: bool) -> dict[str, str]:
    if "prompt" in named or "response" in named:
        pair = {"prompt": named.pop("prompt", "prompt")}
        if need_response or "response" in named:
            pair["response"] = named.pop("response", "response")
        forms = [pair, *({form: name} for form, name in named.items())]
    else:
        forms = [{form: name} for form, name in named.items()]
    if len(forms) != 1:
        raise UserError(
            f"{source.path}: name one of text, prompt with response, messages, or turns; got {', '.join(chain(*forms))}"
        )
    return forms[0]


def _inferred(source: Named, rows: Sequence[RawRow], found: list[str], need_response: bool) -> dict[str, str]:
    """The first known form that at least half as many rows have as have the commonest one."""
    preferences = need_response and set(_PREFERENCES) <= set(found)
    forms: list[dict[str, str]] = [{"messages": "messages"}]
    forms += [] if preferences else [{"messages": "conversations"}]  # these lack the answer there
    if need_response:
        forms += [{"prompt": "prompt", "response": "response"}, {"prompt": _INSTRUCTION, "response": "output"}]
    else:
        forms += [{"turns": "turns"}, {"prompt": "prompt"}, {"prompt": _INSTRUCTION}]
    forms += [{"text": "text"}]
    counts = [sum(all(row.get(name) is not None for name in form.values()) for row in rows) for form in forms]
    for form, count in zip(forms, counts, strict=True):
        if set(form.values()) <= set(found) and 2 * count >= max(counts):
            return form
    raise UserError(
        f"{source.path}: {_about_preferences(rows) if preferences else _about_unknown(rows, found, need_response)}"
    )


def _about_preferences(rows: Sequence[RawRow]) -> str:
    """What to do with two answers of which one was preferred."""
    chosen = next((row["chosen"] for row in rows if row.get("chosen") is not None), None)
    asked = any(isinstance(row.get("prompt"), str) for row in rows)
    if isinstance(chosen, list):
        advice = "name the one to learn: `messages: chosen`"
    elif isinstance(chosen, str):
        advice = f"name the one to learn: `{'prompt: prompt, response: chosen' if asked else 'text: chosen'}`"
    else:
        advice = "write the one to learn as the last turn of the conversation"
    return f"expected one answer per row, got preferences, chosen and rejected; {advice}"


def _about_unknown(rows: Sequence[RawRow], found: list[str], need_response: bool) -> str:
    """What a file without a known form has, and what may be done with it."""
    if "turns" in found:
        return (
            "`turns` hold questions without answers; expected text, prompt and response, or messages: "
            "`tempspec generate` writes the target's answers"
        )
    known = "text, prompt and response, instruction and output, messages or conversations"
    known += "" if need_response else ", or turns"
    nested = [name for name in found if any(_is_nested(row.get(name)) for row in rows)]
    firsts = {name: next(row[name][0] for row in rows if _is_nested(row.get(name))) for name in nested}
    talks = [name for name, first in firsts.items() if {"role", "from"} & first.keys()]
    if talks:
        advice = f"name yours: `messages: {_names(talks[:1])}`"
    elif nested:
        advice = f"{_names(nested)} holds rows of its own: write them as the rows of a file"
    elif (example := _longest_text(rows, found)) is not None:
        advice = f"name yours, for example `text: {example}`"
    else:
        advice = "none of them holds text: write a list of rows or JSON Lines, with one text per row"
    return f"expected columns {known}; it has {_names(found)}; {advice}"


def _longest_text(rows: Sequence[RawRow], found: list[str]) -> str | None:
    """The column with the longest texts, names and addresses left aside; None where no column holds text."""
    lengths = {
        name: sum(len(row[name]) for row in rows if name in row)
        for name in found
        if str(name).lower().rpartition("_")[2] not in _NO_TEXT
        and all(isinstance(row[name], str) for row in rows if row.get(name) is not None)
        and any(row.get(name) for row in rows)
        and all(row[name] is not None for row in rows if name in row)
    }
    return _names([max(lengths, key=lambda name: lengths[name])]) if lengths else None


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _names(found: list[str]) -> str:
    """Column names on one line."""
    return " ".join(", ".join(map(str, found)).split())
