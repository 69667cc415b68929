"""The abstract bases of the six plugin families and the records that pass between floors (floor 2).

A plugin author needs this package, `tempspec.core` and `tempspec.testing`, nothing else; every name is imported from
here. Bases import torch only, so that `tempspec plugins` stays quick. p is the target's law and q the draft's.
"""

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
from tempspec.interfaces.drafting import Draft, Drafter, DraftLength, DraftTurn, LastRound, StepModel, StepTimes
from tempspec.interfaces.exact import Exact
from tempspec.interfaces.heads import DraftHead, HeadModel, HeadStep, HeadTarget, Keys
from tempspec.interfaces.requests import BASELINE, Completion, Pass, Request, Seconds
from tempspec.interfaces.verification import Noise, Verdict, Verifier

__all__ = [
    "BASELINE",
    "Completion",
    "Divergence",
    "Draft",
    "DraftHead",
    "DraftLength",
    "DraftTurn",
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
