"""The abstract bases of the six plugin families and the records that pass between floors (floor 2).

A plugin author needs this package, `tempspec.core` and `tempspec.testing`, nothing else; every name is imported from
here. Bases import torch only, so that `tempspec plugins` stays quick. p is the target's law and q the draft's.
"""

import warnings
from typing import Any

from tempspec.core.tree_verification import Siblings
from tempspec.interfaces.distillation import (
    Divergence,
    Kept,
    LossContext,
    ScheduleContext,
    Summary,
    Temperatures,
    TemperatureSchedule,
)
from tempspec.interfaces.drafting import Draft, DraftContext, Drafter, DraftLength, LastRound, StepModel, StepTimes
from tempspec.interfaces.exact import Exact
from tempspec.interfaces.heads import DraftHead, HeadModel, HeadStep, HeadTarget, Keys
from tempspec.interfaces.requests import BASELINE, Completion, Pass, Request, Seconds
from tempspec.interfaces.verification import Noise, Verdict, Verifier

__all__ = [
    "BASELINE",
    "Completion",
    "Divergence",
    "Draft",
    "DraftContext",
    "DraftHead",
    "DraftLength",
    "Drafter",
    "Exact",
    "HeadModel",
    "HeadStep",
    "HeadTarget",
    "Kept",
    "Keys",
    "LastRound",
    "LossContext",
    "Noise",
    "Pass",
    "Request",
    "ScheduleContext",
    "Seconds",
    "Siblings",
    "StepModel",
    "StepTimes",
    "Summary",
    "TemperatureSchedule",
    "Temperatures",
    "Verdict",
    "Verifier",
]


def __getattr__(name: str) -> Any:
    """A name that was another one in an earlier version; warns when it is first used.

    Raises:
        AttributeError: there was none.
    """
    if name != "DraftTurn":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("tempspec.interfaces.DraftTurn is called DraftContext now", FutureWarning, stacklevel=2)
    globals()[name] = DraftContext
    return DraftContext
