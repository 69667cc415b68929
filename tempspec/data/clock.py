"""The date that chat templates write: a run keeps that of its first prompts (floor 5).

Templates of Llama 3.1, SmolLM3 and gpt-oss write today's date into every prompt. A run that is continued after midnight
would ask other prompts than it began with.
"""

import copy
import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tempspec.data.encoding import Encoder
from tempspec.errors import UserError
from tempspec.files import write_atomically

__all__ = ["at_the_time_of"]

_FILE = "prompts.date.json"
_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
"""How templates ask transformers for the date; it hands them no other clock."""


def at_the_time_of(folder: str | Path, encoder: Encoder) -> Encoder:
    """The encoder with the clock stopped at a run's first prompts; itself, where its template asks for no date.

    Args:
        folder: the run's; remembers the time.
        encoder: of any time.

    Raises:
        UserError: the folder cannot be written, or its note is truncated.
    """
    template = encoder.tokenizer.chat_template
    named = template if isinstance(template, dict) else {"": template or ""}
    if not any(map(_CALL.search, named.values())):
        return encoder
    moment = _first_time(Path(folder))
    stopped = {name: _CALL.sub(lambda call: _quoted(moment, call[2]), text) for name, text in named.items()}
    tokenizer = copy.copy(encoder.tokenizer)
    tokenizer.chat_template = stopped if isinstance(template, dict) else stopped[""]
    return replace(encoder, tokenizer=tokenizer)


def _quoted(moment: datetime, form: str) -> str:
    """A moment as `strftime` writes it, as a literal of a template."""
    return json.dumps(moment.strftime(form), ensure_ascii=False)


def _first_time(folder: Path) -> datetime:
    note = folder / _FILE
    try:
        if not note.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(note, json.dumps({"templates write": datetime.now().isoformat(timespec="seconds")}) + "\n")
        return datetime.fromisoformat(json.loads(note.read_text(encoding="utf-8"))["templates write"])
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another --run folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{note}: expected the time that chat templates write; remove it, and the prompts are today's"
        ) from error
