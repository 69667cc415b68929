"""Callbacks that a run wants whatever it trains, one a file (floor 5)."""

from tempspec.modules.callbacks.export import Exportable, PretrainedExport
from tempspec.modules.callbacks.finite import FiniteLoss
from tempspec.modules.callbacks.graceful import GracefulStop, Stopped
from tempspec.modules.callbacks.last import LastCheckpoint
from tempspec.modules.callbacks.monitor import TrainingMonitor

__all__ = [
    "Exportable",
    "FiniteLoss",
    "GracefulStop",
    "LastCheckpoint",
    "PretrainedExport",
    "Stopped",
    "TrainingMonitor",
]
