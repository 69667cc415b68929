"""Callbacks that a run wants whatever it trains, one per file (floor 5)."""

from tempspec.modules.callbacks.changed import ChangedOptions, decisive
from tempspec.modules.callbacks.export import Exportable, PretrainedExport
from tempspec.modules.callbacks.finite import FiniteLoss, NotFinite
from tempspec.modules.callbacks.graceful import GracefulStop, Stopped, settle_stop, stop_code
from tempspec.modules.callbacks.lacking import lacking
from tempspec.modules.callbacks.last import LastCheckpoint
from tempspec.modules.callbacks.monitor import TrainingMonitor
from tempspec.modules.callbacks.seed import BatchSeed
from tempspec.modules.callbacks.step_clock import StepClock

__all__ = [
    "BatchSeed",
    "ChangedOptions",
    "Exportable",
    "FiniteLoss",
    "GracefulStop",
    "LastCheckpoint",
    "NotFinite",
    "PretrainedExport",
    "StepClock",
    "Stopped",
    "TrainingMonitor",
    "decisive",
    "lacking",
    "settle_stop",
    "stop_code",
]
