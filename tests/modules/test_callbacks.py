import csv
import math
import os
import signal

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from tempspec.errors import UserError
from tempspec.models.loading import save_model
from tempspec.modules.callbacks import (
    BatchSeed,
    FiniteLoss,
    GracefulStop,
    LastCheckpoint,
    PretrainedExport,
    Stopped,
    TrainingMonitor,
    settle_stop,
)
from tempspec.modules.callbacks.metrics_file import MetricsFile, MetricsPosition
from tempspec.modules.fit.optim import WarmupCosine
from tests.tiny import llama

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*LeafSpec",
    "ignore:You defined a `validation_step` but",
    "ignore:You're resuming",
)


class Module(LightningModule):
    """One weight that counts its optimiser steps; its validation scores are given."""

    export_name = "model"

    def __init__(self, scores=(), broken_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.scores = list(scores)
        self.broken_at = broken_at

    def training_step(self, batch, batch_idx):
        loss = self.weight.sum()
        return loss * (math.nan if batch_idx == self.broken_at else 1)

    def validation_step(self, batch, batch_idx):
        self.log("score", self.scores.pop(0))

    def predict_step(self, batch, batch_idx):
        return batch_idx

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def export_model(self):
        model = llama()
        with torch.no_grad():
            model.model.norm.weight.fill_(self.weight.item())
        return model

    def save_export(self, folder, state):
        save_model(self.export_model(), None, folder, state)


def loader(rows=8):
    batches = [{"key": torch.tensor(i), "attention_mask": torch.tensor([1, 1, 1, 0])} for i in range(rows)]
    return DataLoader(batches, batch_size=1)


def trainer(tmp_path, *callbacks, **options):
    options = {"max_epochs": 1, "logger": False, "log_every_n_steps": 1} | options
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(c, (LastCheckpoint, ModelCheckpoint)) for c in callbacks),
        **options,
    )


class At(Callback):
    """Does something after a batch."""

    def __init__(self, batch, action):
        self.batch, self.action = batch, action

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.batch:
            self.action()

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.batch:
            self.action()


def exported(tmp_path):
    return AutoModelForCausalLM.from_pretrained(tmp_path / "model").model.norm.weight[0].item()


def saved(path):
    return torch.load(path, weights_only=True)


# -- stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_fit_behind_the_batch_with_a_checkpoint(tmp_path, number, code):
    before = signal.getsignal(number)
    send = At(2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as caught:
        trainer(tmp_path, send, GracefulStop(), LastCheckpoint(tmp_path)).fit(Module(), loader())
    assert caught.value.code == code
    assert saved(tmp_path / "last.ckpt")["global_step"] == 3
    assert signal.getsignal(number) is before


def test_a_signal_ends_predict(tmp_path):
    send = At(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        trainer(tmp_path, send, GracefulStop()).predict(Module(), loader())


@pytest.mark.parametrize("code", [0, 130])
def test_what_processes_have_settled_counts_not_a_later_signal(tmp_path, code):
    class Settling(Module):
        def predict_step(self, batch, batch_idx):
            settle_stop(self.trainer, code)
            return code

    done = []
    send = At(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    running = trainer(tmp_path, send, GracefulStop(), At(2, lambda: done.append(True)))
    if code:
        with pytest.raises(Stopped) as caught:
            running.predict(Settling(), loader())
        assert caught.value.code == code
    else:
        running.predict(Settling(), loader())
    assert done == [True] * (not code)


def test_handlers_are_put_back_behind_a_whole_run(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer(tmp_path, GracefulStop()).fit(Module(), loader())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# -- last checkpoint --------------------------------------------------------------------------------------------------


def test_the_end_is_saved(tmp_path):
    trainer(tmp_path, LastCheckpoint(tmp_path)).fit(Module(), loader())
    assert saved(tmp_path / "last.ckpt")["global_step"] == 8


def test_an_exception_is_saved(tmp_path):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, At(4, fail), LastCheckpoint(tmp_path)).fit(Module(), loader())
    assert saved(tmp_path / "last.ckpt")["global_step"] == 5


def test_a_run_that_fails_at_once_keeps_the_old_checkpoint(tmp_path):
    trainer(tmp_path, LastCheckpoint(tmp_path)).fit(Module(), loader())

    class Fails(Module):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, LastCheckpoint(tmp_path)).fit(Fails(), loader())
    assert saved(tmp_path / "last.ckpt")["global_step"] == 8


def test_the_clock_saves(tmp_path):
    hours = iter(range(0, 3600 * 100, 3600))
    steps = []

    class Spy(LastCheckpoint):
        def _save(self, trainer):
            super()._save(trainer)
            steps.append(self._saved_step)

    trainer(tmp_path, Spy(tmp_path, every=300, clock=lambda: next(hours))).fit(Module(), loader(3))
    assert steps == [1, 2, 3, 3]


def test_the_clock_saves_whole_accumulated_steps(tmp_path):
    seconds = [0.0]
    tick = At(2, lambda: seconds.append(3600.0))  # within the second step
    last = LastCheckpoint(tmp_path, every=300, clock=lambda: seconds[-1])
    steps = []
    look = At(2, lambda: steps.append((tmp_path / "last.ckpt").exists()))
    leave = At(3, lambda: steps.append(last._saved_step))
    run = trainer(tmp_path, tick, last, accumulate_grad_batches=2)
    run.callbacks += [look, leave]  # behind the checkpoint
    run.fit(Module(), loader())
    assert steps == [False, 2]


def test_half_a_step_is_never_saved(tmp_path):
    class SecondInterrupt(Module):
        def on_before_optimizer_step(self, optimizer):
            if self.trainer.global_step == 4:
                raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        trainer(tmp_path, LastCheckpoint(tmp_path)).fit(SecondInterrupt(), loader())
    assert not (tmp_path / "last.ckpt").exists()


class Dropping(Module):
    """Its gradient is random."""

    def training_step(self, batch, batch_idx):
        return self.weight.sum() * torch.rand(())


def test_a_continued_run_draws_what_an_unbroken_one_draws(tmp_path):
    def fit(folder, steps, **options):
        torch.manual_seed(5)
        run = trainer(tmp_path, BatchSeed(), LastCheckpoint(folder), max_steps=steps, max_epochs=2)
        run.fit(Dropping(), loader(), weights_only=True, **options)
        return saved(folder / "last.ckpt")["state_dict"]["weight"].item()

    whole = fit(tmp_path / "whole", 6)
    assert fit(tmp_path / "cut", 3) != whole
    assert fit(tmp_path / "cut", 6, ckpt_path=str(tmp_path / "cut" / "last.ckpt")) == whole


def test_a_run_that_had_only_its_export_left_makes_it(tmp_path):
    module = Module()
    trainer(tmp_path, LastCheckpoint(tmp_path)).fit(module, loader())
    end = str(tmp_path / "last.ckpt")
    trainer(tmp_path, PretrainedExport(tmp_path)).fit(module, loader(), ckpt_path=end, weights_only=True)
    assert exported(tmp_path) == -8


# -- export -----------------------------------------------------------------------------------------------------------


def test_the_last_weights_are_exported(tmp_path):
    module = Module()
    trainer(tmp_path, PretrainedExport(tmp_path)).fit(module, loader())
    assert exported(tmp_path) == -8


@pytest.mark.parametrize(("scores", "best"), [((3, 1, 2), -16), ((1, 2, 3), -8), ((3, 2, 1), -24)])
def test_a_monitoring_checkpoint_exports_the_best_weights(tmp_path, scores, best):
    module = Module([float(score) for score in scores])
    keep = ModelCheckpoint(tmp_path / "kept", monitor="score", mode="min")
    callbacks = keep, LastCheckpoint(tmp_path), PretrainedExport(tmp_path)
    trainer(tmp_path, *callbacks, max_epochs=3, limit_val_batches=1).fit(module, loader(), loader(1))
    assert exported(tmp_path) == best


# -- finite loss, monitor ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_nan_stops_before_the_weights_change(tmp_path):
    module = Module(broken_at=3)
    with pytest.raises(UserError, match=r"the loss is nan at step 3 \(rows with keys 3\)"):
        trainer(tmp_path, FiniteLoss(), LastCheckpoint(tmp_path)).fit(module, loader())
    assert saved(tmp_path / "last.ckpt")["state_dict"]["weight"].item() == -3


def test_the_usual_curves(tmp_path):
    ticks = iter(range(1000))
    monitor = TrainingMonitor(clock=lambda: float(next(ticks)))
    trainer(tmp_path, monitor, logger=MetricsFile(tmp_path)).fit(Module(), loader(4))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    curves = {"train/grad_norm": 1, "train/lr": 1, "train/tokens_per_second": 3, "train/padding": 0.25}
    for name, value in curves.items():
        assert [float(row[name]) for row in logged] == [value] * 4


# -- metrics file -----------------------------------------------------------------------------------------------------


def test_a_new_metric_widens_the_table(tmp_path):
    log = MetricsFile(tmp_path)
    log.log_metrics({"a": 1.0}, 0)
    log.log_metrics({"b": 2.0}, 1)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,a,b", "0,1.0,", "1,,2.0"]


def test_a_new_run_puts_the_old_file_away(tmp_path):
    MetricsFile(tmp_path).log_metrics({"a": 1.0}, 0)
    MetricsFile(tmp_path).log_metrics({"b": 2.0}, 1)
    assert (tmp_path / "metrics.1.csv").read_text().splitlines() == ["step,a", "0,1.0"]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,b", "1,2.0"]


@pytest.mark.parametrize("torn", ["", "3,4.", "3,\xff"])
def test_a_continued_run_logs_no_step_twice_after_a_crash(tmp_path, torn):
    whole = MetricsFile(tmp_path)
    for step in range(3):
        whole.log_metrics({"a": float(step)}, step)
    with whole.path.open("a", encoding="latin-1") as file:
        file.write(torn)
    again = MetricsFile(tmp_path)
    again.keep(2)
    again.log_metrics({"a": 2.0}, 2)
    again.log_metrics({"a": 3.0, "b": 1.0}, 3)
    assert whole.path.read_text().splitlines() == ["step,a,b", "0,0.0,", "1,1.0,", "2,2.0,", "3,3.0,1.0"]
    assert again.rows == 4


def test_a_checkpoint_knows_the_rows_that_were_logged_before_it(tmp_path):
    files = MetricsFile(tmp_path), MetricsFile(tmp_path)
    for log, steps in zip(files, (3, 5), strict=True):
        checkpoint = str(tmp_path / "last.ckpt") if steps == 5 else None
        run = trainer(
            tmp_path,
            LastCheckpoint(tmp_path),
            MetricsPosition(),
            TrainingMonitor(),
            logger=log,
            max_steps=steps,
            max_epochs=2,
        )
        run.fit(Module(), loader(), ckpt_path=checkpoint, weights_only=True)
        if steps == 3:
            log.log_metrics({"a": 1.0}, 3)  # lost: behind the checkpoint
    with files[0].path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2", "3", "4"]


# -- schedule ---------------------------------------------------------------------------------------------------------


def schedule(**options):
    return WarmupCosine(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0), **options)


def test_warmup_rises_and_the_cosine_falls_to_the_floor():
    factors = [schedule(warmup=5, floor=0.1, total_steps=50).factor(step) for step in range(60)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:51] == sorted(factors[5:51], reverse=True)
    assert factors[50:] == pytest.approx([0.1] * 10)


def test_an_endless_run_stays_at_the_peak():
    assert schedule(warmup=0, total_steps=None).factor(10**9) == 1.0


def test_a_continued_run_may_be_longer():
    short, long = schedule(total_steps=10), schedule(total_steps=100)
    long.load_state_dict(short.state_dict())
    assert long.total_steps == 100


def test_a_share_of_the_steps_warms_up():
    factors = [schedule(warmup=0.1, total_steps=50).factor(step) for step in range(6)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1
    assert schedule(warmup=0.1, total_steps=3).factor(0) == 1


@pytest.mark.parametrize("options", [{"warmup": -1}, {"warmup": 1.5}, {"floor": 1.5}])
def test_impossible_schedules(options):
    with pytest.raises(ValueError, match="got"):
        schedule(**options)
