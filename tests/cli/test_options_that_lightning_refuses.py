"""An option that Lightning or torch refuses is one line with exit code 2; a fault of ours keeps its traceback."""

import pytest

from tempspec.cli.failures import as_user_error

REFUSED = {
    "a validation beyond the epoch": (("--trainer.val_check_interval", 500), "val_check_interval"),
    "a share beyond the whole": (("--trainer.val_check_interval", 1.5), "val_check_interval"),
    "a strategy that is none": (("--trainer.strategy", "nonsense"), "nonsense"),
    "an accelerator that is none": (("--trainer.accelerator", "abacus"), "abacus"),
    "a way to clip that is none": (
        ("--trainer.gradient_clip_val", 1, "--trainer.gradient_clip_algorithm", "shear"),
        "shear",
    ),
    "a precision that is none": (("--trainer.precision", "3-true"), "3-true"),
    "devices that are none": (("--trainer.devices", 0), "devices"),
    "accumulation of nothing": (("--trainer.accumulate_grad_batches", 0), "accumulate_grad_batches"),
    "a time that is none": (("--trainer.max_time", "soon"), "soon"),
    "half a limit": (("--trainer.limit_train_batches", 1.5), "limit_train_batches"),
    "a profiler that is none": (("--trainer.profiler", "guess"), "profiler"),
    "a metric that nobody logs": (
        ("--trainer.callbacks", "{class_path: EarlyStopping, init_args: {monitor: nothing}}"),
        "nothing",
    ),
    "a rate to monitor without a logger": (
        ("--trainer.callbacks", "LearningRateMonitor", "--trainer.logger", "false"),
        "LearningRateMonitor",
    ),
    "a negative learning rate": (("--model.optimizer", "AdamW", "--model.optimizer.lr", -1), "-1"),
    "a negative number of workers": (("--data.num_workers", -1), "num_workers"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_it_is_one_line(case, run, world):
    options, says = REFUSED[case]
    code, _, error = run("fit", "--config", world / "pair.yaml", *options)
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2, error
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in error


def test_a_fault_of_ours_keeps_its_traceback(run, world, monkeypatch):
    def faulty(self, *_):
        raise ValueError("ours")

    monkeypatch.setattr("tempspec.modules.fit.loss.FitLoss.__call__", faulty)
    with pytest.raises(ValueError, match="ours"):
        run("fit", "--config", world / "pair.yaml")


def test_what_lightning_says_of_our_own_calls_is_our_fault(run, world, monkeypatch):
    monkeypatch.setattr(
        "tempspec.modules.fit.loss.LossSums.means", lambda self: dict.fromkeys(("loss", "acceptance"), object())
    )
    with pytest.raises(ValueError, match="cannot be logged"):
        run("fit", "--config", world / "pair.yaml")


def test_a_nondeterministic_operation_names_the_option():
    text = "put_ does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'."
    told = as_user_error(RuntimeError(f"{text} You can turn off determinism just for this operation"))
    assert str(told).endswith("set trainer.deterministic: warn")
    assert as_user_error(RuntimeError("anything else")) is None
