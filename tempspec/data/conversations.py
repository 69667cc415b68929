"""Conversations in the shapes that the field's files have, as messages for a chat template (floor 5).

A message is kept with all that it says: tool calls, names, reasoning, content as null or in parts.
"""

import json
from typing import Any

from tempspec.data.skipped import Unusable
from tempspec.data.values import is_unicode, short

__all__ = ["ROLES", "for_template", "messages", "tools"]

Message = dict[str, Any]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Who speaks, by the names that files of `{from, value}` give (FastChat, ShareGPT, LLaMA-Factory)."""

_CALL = "function_call"
_CALLS = ("tool_calls", "function_call")


def messages(name: str, value: Any, *, system: Any = None, columnar: bool = False) -> str:
    """The messages of a conversation as JSON text; empty where there is no turn.

    Args:
        name: the column.
        value: a list of `{role, content, ...}` or of `{from, value}`, or the same as JSON text.
        system: what the row says beside them as the system's turn; null or blank for none.
        columnar: whether the file gives every object all keys, with null for those that it had not.

    Raises:
        Unusable: they are no messages.
    """
    turns = _parsed(value)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Unusable(f"{name} is no list of messages", f"got {short(value)}")
    found = [_message(_without_nulls(turn) if columnar else turn) for turn in turns]
    if found and found[0]["role"] != "system" and isinstance(system, str) and system.strip():
        found.insert(0, {"role": "system", "content": system})
    return _as_json(name, found) if found else ""


def tools(name: str, value: Any, *, columnar: bool = False) -> str | None:
    """The tools that a conversation may call as JSON text, None where there are none.

    Args:
        name: the column.
        value: a list of objects, or JSON text of it or of each.
        columnar: as for `messages`.

    Raises:
        Unusable: they are no list of objects.
    """
    listed = _parsed(value)
    if listed is None or listed == "" or listed == []:
        return None
    found = [_parsed(tool) for tool in listed] if isinstance(listed, list) else [None]
    if not all(isinstance(tool, dict) for tool in found):
        raise Unusable(f"{name} is no list of tools", f"got {short(value)}")
    return _as_json(name, [_without_nulls(tool) for tool in found] if columnar else found)


def _as_json(name: str, value: Any) -> str:
    written = json.dumps(value, ensure_ascii=False, default=str)  # a column of a table may hold dates
    if not is_unicode(written):
        raise Unusable(f"{name} is no Unicode", "half of a surrogate pair")
    return written


def for_template(found: list[Message]) -> list[Message]:
    """Messages as a chat template takes them.

    Arguments of a call that are JSON text, as OpenAI's interface has them, become the object that the text says:
    templates expect it (transformers, "Tool use"), and serving engines hand it to them.
    """
    for message in found:
        for call in message.get("tool_calls") or []:
            function = call.get("function", call) if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(arguments := _parsed(function.get("arguments")), dict):
                function["arguments"] = arguments
    return found


def _message(turn: Message) -> Message:
    """One message, keys that say nothing left out."""
    if "role" not in turn and "from" in turn:
        turn = _of_sharegpt(turn)
    kept = {key: value for key, value in turn.items() if value is not None or key == "content"}
    role, content = kept.get("role"), kept.get("content")
    if not isinstance(role, str) or not role.strip():
        raise Unusable("a message without a role", f"got {short(turn)}")
    if content is None and not any(kept.get(call) for call in _CALLS):
        raise Unusable("content is null", f"of {role}")
    if not isinstance(kept.get("tool_calls", []), list):
        raise Unusable("tool_calls is no list", f"got {short(kept['tool_calls'])}")
    if content is not None and not isinstance(content, str) and not _are_parts(content):
        raise Unusable("content is no text", f"got {short(content)}")
    return kept


def _of_sharegpt(turn: Message) -> Message:
    """`{from, value}` as `{role, content}`; a function's call is the assistant's, in the form that templates take."""
    speaker, value = turn["from"], turn.get("value")
    role = ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise Unusable("unknown role", f"got {short(speaker)}, expected {', '.join(ROLES)}")
    calls = _parsed(value) if speaker.strip().lower() == _CALL else None
    calls = [calls] if isinstance(calls, dict) else calls
    if isinstance(calls, list) and calls and all(isinstance(call, dict) and "name" in call for call in calls):
        return {
            "role": role,
            "content": "",
            "tool_calls": [{"type": "function", "function": call} for call in calls],
        }
    return {"role": role, "content": value}


def _are_parts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict | str) for part in content)


def _parsed(value: Any) -> Any:
    """What a text says as JSON; itself where it is no text, or says nothing."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _without_nulls(value: Any) -> Any:
    """An object without the keys that are null, at any depth, but for `content` at the top."""
    return {key: _pruned(member) for key, member in value.items() if member is not None or key == "content"}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(member) for key, member in value.items() if member is not None}
    return [_pruned(member) for member in value] if isinstance(value, list) else value
