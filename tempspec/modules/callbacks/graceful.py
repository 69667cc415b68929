"""Stopping between two batches (floor 5).

Lightning's own handling broadcasts inside the signal handler, which hangs under DDP, ends with exit code 0 after
SIGTERM, and does not look at the signal at all in predict.
"""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tempspec.modules.callbacks.patience import Patience
from tempspec.modules.callbacks.step_clock import StepClock
from tempspec.modules.processes import RaisedByAll, raised_by_all

__all__ = ["GracefulStop", "Stopped", "settle_stop", "stop_code"]

_EXIT_CODE = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""128 + the signal's number, as shells count."""


class Stopped(RaisedByAll, SystemExit):
    """The run was asked to stop and did; `code` is 130 (SIGINT) or 143 (SIGTERM)."""


class GracefulStop(Callback):
    """Lets SIGINT and SIGTERM end a run after the current step or batch, on all ranks, with the signal's exit code.

    The first signal only sets a flag; a second one of the same kind acts at once. Checkpoints are saved by whoever
    saves on an exception. A step that may last longer than a stop may take looks at the flag itself: `stop_code`.

    Training leaves where Lightning itself leaves on SIGTERM, between two steps, by its `SIGTERMException` with the
    signal's exit code: an exception in `on_train_batch_end` would come before the step's row is logged and before the
    validation that is due, and a run that is continued would have neither. An accumulated step is finished first:
    its gradients would be lost.

    Of several processes, one that a signal cannot reach (it waits in a collective for one that is gone) ends after
    `patience`; and one that fails alone ends those that it has started.

    Args:
        patience: what ends a process that does not answer.
    """

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = Patience() if patience is None else patience
        self._code = 0
        self._settled: int | None = None
        self._steps = StepClock()
        self._previous: dict[signal.Signals, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the handlers that were there before Lightning's."""
        self._code, self._settled = 0, None
        if threading.current_thread() is threading.main_thread():  # signals can be handled nowhere else
            self._previous = {number: signal.getsignal(number) for number in _EXIT_CODE}

    @property
    def code(self) -> int:
        """The exit code that this process was asked to stop with; 0 for none."""
        return self._code

    def settle(self, code: int) -> None:
        """Stop after the batch of predict with this exit code, or continue for 0, whatever was asked for since."""
        self._settled = code

    def _install(self, trainer: Trainer) -> None:
        """Handle the signals from here on, instead of Lightning, which may have noted one already."""
        if trainer.received_sigterm and not self._code:
            self._code = _EXIT_CODE[signal.SIGTERM]
        for number in self._previous:
            signal.signal(number, self._note)
        if self._previous and trainer.world_size > 1:
            self.patience.begin()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._install(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._steps = StepClock(trainer.global_step)
        self._install(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._install(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._install(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers."""
        self._install(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the former handlers back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the former handlers back, and give Lightning's exception the exit code.

        Processes that Lightning has started from this one would wait for it; it ends them itself only where one of
        them fails.
        """
        if isinstance(exception, SIGTERMException):
            exception.code = self._code
        self._restore()
        if trainer.world_size > 1 and not raised_by_all(exception) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler; the next signal of the kind finds the former one."""
        self._code = _EXIT_CODE[signal.Signals(number)]
        rank_zero_info("stopping after this step or batch; once more stops at once")
        signal.signal(number, self._previous[signal.Signals(number)])

    def _restore(self) -> None:
        """Put the former handlers back."""
        self.patience.stop()
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _agree(self, trainer: Trainer) -> int:
        """The exit code that any rank was asked to stop with, the same on all; 0 if none was."""
        if trainer.world_size > 1:
            shared = torch.tensor(float(self._code), dtype=torch.float32, device=trainer.strategy.root_device)
            self._code = int(trainer.strategy.reduce(shared, reduce_op="max"))
        return self._code

    def _check(self, trainer: Trainer) -> None:
        """Stop if any rank was asked to.

        Raises:
            Stopped: with the exit code.
        """
        if code := self._agree(trainer):
            raise Stopped(code)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Let Lightning stop after this step."""
        if self._steps.stepped(trainer.global_step) and self._agree(trainer):
            trainer._signal_connector.received_sigterm = True

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop between two batches."""
        self._check(trainer)

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop between two batches."""
        self._check(trainer)

    def on_predict_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop between two passes, as what decodes has settled with all processes: none leaves while others wait."""
        if code := self._code if self._settled is None else self._settled:
            raise Stopped(code)


def stop_code(trainer: Trainer) -> int:
    """The exit code that this process was asked to stop with and has not yet; 0 for none."""
    return next((one.code for one in trainer.callbacks if isinstance(one, GracefulStop)), 0)  # type: ignore[attr-defined]


def settle_stop(trainer: Trainer, code: int) -> None:
    """Let this process stop after its batch with an exit code, or continue where it is 0, as all processes will."""
    for one in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(one, GracefulStop):
            one.settle(code)
