"""A run that is continued with other options than those of its checkpoint."""

import csv
import logging

import pytest
import torch


@pytest.fixture
def fit(world, run, tmp_path, caplog):
    """Fits the run, for as many steps, with more options; the last line of what it said, or what it refused."""

    def call(steps, *more):
        caplog.clear()
        logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
        more = (*more, "--ckpt_path", "last") if (tmp_path / "run/fit/checkpoints/last.ckpt").exists() else more
        code, _, error = run(
            "fit", "--config", world / "pair.yaml", "--run", tmp_path / "run", "--trainer.max_steps", steps, *more
        )
        told = [record.getMessage() for record in caplog.records if "checkpoint of step" in record.getMessage()]
        return code, error if code else "\n".join(told)

    return call


def rates(folder):
    with (folder / "run/fit/metrics.csv").open(newline="") as file:
        return [float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]]


ADAMW = ("--model.optimizer", "AdamW", "--model.optimizer.lr")


def test_another_learning_rate_is_taken_and_told(fit, tmp_path):
    whole = ("--model.lr_scheduler", "WarmupCosine", "--model.lr_scheduler.warmup", "8")
    assert fit(2, *whole, *ADAMW, "1e-3") == (0, "")
    code, told = fit(4, *whole, *ADAMW, "1e-6", "--model.optimizer.weight_decay", "0")
    assert code == 0, told
    assert told == (
        "changed since the checkpoint of step 2, from here on: trainer.max_steps 2 -> 4; weight_decay 0.01 -> 0.0; "
        "learning rate 0.001 -> 1e-06"
    )
    assert rates(tmp_path) == pytest.approx([1e-3 / 8, 2e-3 / 8, 3e-6 / 8, 4e-6 / 8])
    group, _ = torch.load(tmp_path / "run/fit/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0][
        "param_groups"
    ]
    assert (group["initial_lr"], group["weight_decay"]) == (1e-6, 0)


def test_a_named_optimizer_in_place_of_the_default(fit, tmp_path):
    assert fit(2)[0] == 0
    code, told = fit(4, *ADAMW, "1e-6")
    assert code == 0, told
    assert "learning rate 0.0001 -> 1e-06" in told
    assert max(rates(tmp_path)[2:]) <= 1e-6


@pytest.mark.parametrize("schedule", ["StepLR", "lightning.pytorch.cli.ReduceLROnPlateau"])
def test_other_schedules_take_the_rate_too(fit, tmp_path, schedule):
    options = {"StepLR": ("step_size", "2"), "lightning.pytorch.cli.ReduceLROnPlateau": ("monitor", "train/loss")}
    name, value = options[schedule]
    named = ("--model.lr_scheduler", schedule, f"--model.lr_scheduler.{name}", value)
    assert fit(3, *named, *ADAMW, "1e-3") == (0, "")
    code, told = fit(4, *named, *ADAMW, "1e-6")
    assert code == 0, told
    assert "learning rate 0.001 -> 1e-06" in told
    assert rates(tmp_path)[-1] == pytest.approx(1e-7 if schedule == "StepLR" else 1e-6)


@pytest.mark.parametrize(
    ("schedule", "option", "value", "share"),
    [
        ("WarmupCosine", "warmup", "8", 4 / 8),
        ("StepLR", "step_size", "2", 0.1),
        ("lightning.pytorch.cli.ReduceLROnPlateau", "monitor", "train/loss", 1),
    ],
)
def test_a_learning_rate_of_nothing_can_be_raised(fit, tmp_path, schedule, option, value, share):
    named = ("--model.lr_scheduler", schedule, f"--model.lr_scheduler.{option}", value)
    assert fit(3, *named, *ADAMW, "0") == (0, "")
    code, told = fit(4, *named, *ADAMW, "1e-3")
    assert code == 0, told
    assert "learning rate 0 -> 0.001" in told
    assert rates(tmp_path) == pytest.approx([0, 0, 0, 1e-3 * share])


def test_another_objective_is_refused_unless_told(fit):
    assert fit(2) == (0, "")
    other = ("--model.divergence", "JensenShannon", "--model.divergence.beta", "0.3", "--model.temperature", "2.0")
    code, error = fit(4, *other)
    assert code == 2
    assert error.splitlines()[-1] == (
        "error: model.divergence is JensenShannon(beta=0.3, scale=none), but the checkpoint was trained with null "
        "(model.temperature changed too): set it back, begin another run, or resume with what is new by "
        "--resume_changed true"
    )
    code, told = fit(4, *other, "--resume_changed", "true")
    assert code == 0, told
    assert "model.divergence null -> JensenShannon(beta=0.3, scale=none); model.temperature null -> 2.0" in told


def test_another_optimizer_begins_anew_where_that_is_told(fit, tmp_path):
    assert fit(2, *ADAMW, "1e-3") == (0, "")
    code, error = fit(4, "--model.optimizer", "SGD", "--model.optimizer.lr", "0.5")
    assert (code, "model.optimizer is SGD(" in error) == (2, True)
    code, told = fit(4, "--model.optimizer", "SGD", "--model.optimizer.lr", "0.5", "--resume_changed", "true")
    assert code == 0, told
    assert rates(tmp_path)[-1] == pytest.approx(0.5, rel=0.9)
    assert torch.load(tmp_path / "run/fit/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_checkpoint_without_a_record_goes_on(fit, tmp_path, caplog):
    assert fit(2) == (0, "")
    path = tmp_path / "run/fit/checkpoints/last.ckpt"
    kept = torch.load(path, weights_only=True)
    kept.pop("trained_with")
    torch.save(kept, path)
    assert fit(3) == (0, "")
    assert "does not say what it was trained with" in caplog.text


def test_a_checkpoint_of_an_earlier_version_is_told_of(fit, tmp_path):
    assert fit(2) == (0, "")
    path = tmp_path / "run/fit/checkpoints/last.ckpt"
    kept = torch.load(path, weights_only=True)
    kept.pop("trained_with")
    (held,) = kept["optimizer_states"]
    places = [place for group in held["param_groups"] for place in group["params"]]
    held["param_groups"] = [held["param_groups"][0] | {"params": places}]  # all weights in one group
    torch.save(kept, path)
    code, error = fit(3)
    assert code == 2
    assert "as earlier versions of tempspec had: begin another run, or resume with a new optimizer by" in error
    assert fit(3, "--resume_changed", "true") == (0, "")
    assert torch.load(path, weights_only=True)["global_step"] == 3
