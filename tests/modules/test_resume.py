"""A run that was stopped ends with the same bits as one that was not, for every schedule and every way to get text."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from tempspec.modules.callbacks import GracefulStop, LastCheckpoint
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.online_text import OnlineText
from tempspec.plugins import schedules

SCHEDULES = {
    "Constant": lambda: schedules.Constant(1.5),
    "Linear": lambda: schedules.Linear(2.0, 1.0),
    "Cosine": lambda: schedules.Cosine(2.0, 1.0),
    "Exponential": lambda: schedules.Exponential(2.0, 1.0),
    "Piecewise": lambda: schedules.Piecewise([2], [2.0, 1.0]),
    "Uniform": lambda: schedules.Uniform(0.5, 2.0, per="token"),
    "Grid": lambda: schedules.Grid([0.5, 2.0]),
    "Matched": lambda: schedules.Matched(unknown=1.0),
    "Join": lambda: schedules.Join([schedules.Constant(2.0), schedules.Uniform(0.5, 1.0)], [2]),
    "TeacherEntropy": schedules.TeacherEntropy,
    "TokenDifficulty": schedules.TokenDifficulty,
    "LogitPeaks": schedules.LogitPeaks,
    "Curriculum": schedules.Curriculum,
}
REGIMES = {
    "fixed": None,
    "draft": {},
    "target over a range": {"writer": "target", "low": 0.5, "high": 1.5},
    "mixed by request": {"share": 0.5},
    "mixed by token": {"writer": "both"},
    "every second step": {"every": 2},
}
QUICK = [(name, "fixed") for name in SCHEDULES] + [("Uniform", name) for name in REGIMES if name != "fixed"]
SLOW = [(one, two) for one in SCHEDULES for two in REGIMES if (one, two) not in QUICK]


def test_every_schedule_is_here():
    assert set(SCHEDULES) == set(schedules.__all__)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
@pytest.mark.parametrize(
    ("schedule", "regime"), [*QUICK, *(pytest.param(*names, marks=pytest.mark.slow) for names in SLOW)]
)
def test_a_resumed_run_ends_with_the_same_bits(pair, data, trainer, tmp_path, schedule, regime):
    def fit(resume=None, callbacks=()):
        options = REGIMES[regime]
        module = DistillationModule(
            str(pair / "target"),
            draft=str(pair / "draft"),
            temperature=SCHEDULES[schedule](),
            online=None if options is None else OnlineText(max_new_tokens=4, **options),
        )
        own = trainer(max_steps=3, limit_val_batches=0)
        own.callbacks += list(callbacks)
        own.fit(module, data, ckpt_path=resume)
        return module.state_dict()

    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(callbacks=[keep])
    resumed = fit(str(tmp_path / "kept" / "step=1.ckpt"))
    for name, value in resumed.items():
        assert torch.equal(value, whole[name])


class At(Callback):
    """Acts at the beginning or the end of one batch of the run."""

    def __init__(self, batch, *, begin=None, end=None):
        self.batch, self.begin, self.end = batch, begin, end

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.begin and batch_idx == self.batch:
            self.begin()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.end and batch_idx == self.batch:
            self.end()


def crash():
    raise ZeroDivisionError


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


ENDS = {
    "SIGTERM": lambda: At(6, begin=sigterm),
    "a crash": lambda: At(10, begin=crash),
    "a crash behind a step's first batch": lambda: At(9, end=crash),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_stop_within_an_accumulated_step_changes_no_bit(pair, data, trainer, tmp_path, end):
    path = tmp_path / "last.ckpt"

    def fit(callbacks=(), resume=None):
        module = DistillationModule(
            str(pair / "target"), draft=str(pair / "draft"), temperature=schedules.Uniform(0.5, 2.0)
        )
        own = trainer(max_steps=4, limit_val_batches=0, accumulate_grad_batches=3)
        own.callbacks += list(callbacks)
        own.fit(module, data, ckpt_path=resume, weights_only=True)
        return module.state_dict()

    data.batch_size = 5  # twelve batches, four steps
    whole = fit()
    clock = iter([0.0] * 3 + [100.0] * 99)  # the third step is saved by the time, and last
    with pytest.raises((SystemExit, ZeroDivisionError)):
        fit([GracefulStop(), ENDS[end](), LastCheckpoint(tmp_path, every=60, clock=lambda: next(clock))])
    assert torch.load(path, weights_only=True)["global_step"] == 3
    for name, value in fit(resume=str(path)).items():
        assert torch.equal(value, whole[name])
