"""The file of measured step times: made at the start of predict, read when it is continued (floor 5).

A continued run must draft as the one before did, so it takes the times of that one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tempspec.files import write_atomically
from tempspec.interfaces import StepTimes

NAME = "step_times.json"


def write_step_times(folder: Path, times: StepTimes, models: Mapping[str, str]) -> None:
    """Keep times with what they were measured on.

    Args:
        folder: the stage's folder, `RUN/predict`.
        times: what was measured.
        models: digests of the pair, and how it drafts.
    """
    content = {"models": dict(models), "seconds": asdict(times)}
    write_atomically(folder / NAME, json.dumps(content, indent=2) + "\n")


def read_step_times(folder: Path, models: Mapping[str, str]) -> StepTimes | None:
    """The times of this pair; None where there are none, or those of another pair.

    Args:
        folder: the stage's folder, `RUN/predict`.
        models: digests of the pair that asks, and how it drafts.
    """
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        measured, seconds = content["models"], content["seconds"]
        times = StepTimes(float(seconds["draft"]), tuple(map(float, seconds["verify"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return times if measured == dict(models) else None
