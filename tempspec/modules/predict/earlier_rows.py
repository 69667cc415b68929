"""Rows that an earlier version decoded, which knew models by less than all of their weights (floor 5)."""

import json
from pathlib import Path

from tempspec.errors import UserError
from tempspec.models.digests import of_earlier_version

__all__ = ["refuse_earlier_rows"]


def refuse_earlier_rows(folder: Path, name: str) -> None:
    """Refuse to add to rows whose weights cannot be compared with today's; a report of them can still be made.

    Args:
        folder: the stage's folder.
        name: stem of the files with rows.

    Raises:
        UserError: saying what they are, and how to go on.
    """
    if not any((folder / f"{name}.{kind}").exists() for kind in ("parquet", "parts")):
        return
    try:
        held = json.loads((folder / f"{name}.origin.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or what the row store refuses
        return
    if isinstance(held, dict) and any(of_earlier_version(str(held.get(entry))) for entry in ("target", "draft")):
        raise UserError(
            f"{folder} holds rows of an earlier version of tempspec, which knew models by the ends of their files: "
            "its report can still be made; to decode, choose another --run folder or rename this one"
        )
