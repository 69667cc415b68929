"""The date that chat templates write (floor 5): a run keeps that of its first prompts.

Templates of Llama 3.1, SmolLM3 and gpt-oss write today's date into every prompt. A run that is continued after midnight
would ask other prompts than it began with.
"""

import copy
import json
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from tempspec.data.encoding import Encoder
from tempspec.errors import UserError
from tempspec.files import write_atomically

__all__ = ["at_the_time_of"]

_FILE = "prompts.date.json"
_FUNCTION = "strftime_now"
"""What transformers gives templates to write the date with; an argument of that name takes its place."""


def at_the_time_of(folder: str | Path, encoder: Encoder) -> Encoder:
    """The encoder with the clock stopped at a run's first prompts; itself, where its template asks for no date.

    Args:
        folder: the run's; remembers the time.
        encoder: of any time.

    Raises:
        UserError: the folder cannot be written, or its note is torn.
    """
    if _FUNCTION not in json.dumps(encoder.tokenizer.chat_template or ""):
        return encoder
    tokenizer = copy.copy(encoder.tokenizer)
    now = _first_time(Path(folder))
    tokenizer.apply_chat_template = partial(tokenizer.apply_chat_template, **{_FUNCTION: now.strftime})
    return replace(encoder, tokenizer=tokenizer)


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
