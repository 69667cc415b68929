"""Callbacks that a run wants whatever it trains, one a file (floor 5)."""

from tempspec.modules.callbacks.export import Exportable, PretrainedExport
from tempspec.modules.callbacks.finite import FiniteLoss
from tempspec.modules.callbacks.graceful import GracefulStop, Stopped, ask_stop, stop_code
from tempspec.modules.callbacks.last import LastCheckpoint
from tempspec.modules.callbacks.monitor import TrainingMonitor
from tempspec.modules.callbacks.seed import BatchInStep, BatchSeed

__all__ = [
    "BatchInStep",
    "BatchSeed",
    "Exportable",
    "FiniteLoss",
    "GracefulStop",
    "LastCheckpoint",
    "PretrainedExport",
    "Stopped",
    "TrainingMonitor",
    "ask_stop",
    "stop_code",
]
