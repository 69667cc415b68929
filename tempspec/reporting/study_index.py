"""study.json: which runs a study is made of, and how they are to be read (floor 5).

A study folder holds ordinary run folders, as the other subcommands leave them, and this index:

- `drafts`: each draft's `labels` and the run folder of each seed. The labels that a report may rely on are
  `train_temperature` (of the loss; a number, `LOW to HIGH` for a range, or other words for a schedule),
  `generation_temperature` (of the text that the draft was trained on, absent where it is no model's text),
  `divergence`, and `fitted` (false for a draft taken as it is); the others are free.
- `prompt_sets`: each set that `predict` decoded, with its `domain`: `in` or `out` of what the draft was trained on.
- `prefixes`: where `validate/` has the analytic acceptance of a set. `fixed` names the validation set over one text for
  all temperatures, `sampled` the ones over text that the target wrote, by the temperature that it wrote at. All
  begin with the same prompts, so prompt keys pair them.
- `status`: cells finished, of how many.

A run's folder holds `validate/acceptance.parquet` (see `tempspec.reporting.records.prompt_rows`) and
`predict/predictions.parquet` (see `tempspec.metrics.rows.DecodedRow`); a folder that is missing is not finished.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tempspec.errors import UserError
from tempspec.files import write_atomically

__all__ = ["FILE", "DraftIndex", "Kind", "Prefixes", "Status", "StudyIndex", "read_study", "write_study"]

FILE = "study.json"
VERSION = 1

Kind = Literal["decoding-temperature", "consistent-distillation", "out-of-domain", "remedies", "custom"]


@dataclass(frozen=True)
class DraftIndex:
    """One draft.

    Attributes:
        labels: how it differs from the others, by name.
        seeds: the run folder of each seed, relative to the study's folder.
    """

    labels: Mapping[str, str | float | bool]
    seeds: Mapping[str, str]


@dataclass(frozen=True)
class Prefixes:
    """The validation sets that the two kinds of text are measured as.

    Attributes:
        fixed: prompt set -> validation set.
        sampled: prompt set -> target temperature, written as by `{:g}` -> validation set.
    """

    fixed: Mapping[str, str] = field(default_factory=dict)
    sampled: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes:
        done: finished cells.
        total: all cells: drafts x seeds x verifiers x prompt sets x pairs of temperatures.
    """

    done: int
    total: int


@dataclass(frozen=True)
class StudyIndex:
    """What `study.json` holds.

    Attributes:
        name: the study's name.
        kind: which of the four questions it asks, or `custom`.
        drafts: by name, in the order in which to show them.
        prompt_sets: by name; each with its `domain`.
        target_temperatures: that were decoded at.
        draft_temperatures: that were proposed at: `same` or a number.
        reference_temperature: where falls of acceptance are counted from.
        prefixes: see `Prefixes`.
        status: see `Status`.
        version: of this format.
    """

    name: str
    kind: Kind
    drafts: Mapping[str, DraftIndex]
    prompt_sets: Mapping[str, Mapping[str, str]]
    target_temperatures: list[float]
    draft_temperatures: list[float | str]
    reference_temperature: float
    prefixes: Prefixes
    status: Status
    version: int = VERSION


def write_study(folder: str | Path, index: StudyIndex) -> Path:
    """Write the index into a study's folder, whole or not at all; returns the file."""
    file = Path(folder) / FILE
    write_atomically(file, json.dumps(asdict(index), indent=1, ensure_ascii=False) + "\n")
    return file


def read_study(folder: str | Path) -> StudyIndex:
    """The index in a study's folder.

    Raises:
        UserError: there is none, or it is not one of this version.
    """
    file = Path(folder) / FILE
    try:
        held: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{file}: expected a study's index, got no file; name a folder that `tempspec study` left"
        ) from error
    except ValueError as error:
        raise UserError(f"{file}: expected JSON, got something else; run `tempspec study` again") from error
    names = {part.name for part in fields(StudyIndex)}
    if not isinstance(held, dict) or held.get("version") != VERSION or set(held) != names:
        raise UserError(f"{file}: expected an index of version {VERSION}; run `tempspec study` again to write it")
    try:
        drafts = {name: DraftIndex(**draft) for name, draft in held["drafts"].items()}
        parts = {"drafts": drafts, "prefixes": Prefixes(**held["prefixes"]), "status": Status(**held["status"])}
    except (AttributeError, TypeError) as error:
        raise UserError(f"{file}: expected a study's index, got other fields; run `tempspec study` again") from error
    return StudyIndex(**(held | parts))
