"""A run that was stopped ends with the same bits as one that was not, for every schedule and every way to get text."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tempspec.modules.distillation import DistillationModule
from tempspec.modules.online import OnlineText
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
