"""How often a training step waits for its GPU: once, for the number of tokens that count."""

import pytest
import torch
from lightning.pytorch import Callback

from tempspec.modules.distillation import DistillationModule
from tempspec.modules.language_model import LanguageModelModule, ModelShape
from tempspec.plugins.divergences import TAID, ForwardKL, JensenShannon, NegativeLogAcceptance
from tempspec.plugins.schedules import Grid, Uniform
from tests.modules.waits import HostWaits


class Counted(Callback):
    """The waits of every step, from its batch to its end; and what is logged as a number of the host."""

    def __init__(self):
        self.waits, self.numbers, self.mode = [], set(), None

    def on_train_start(self, trainer, pl_module):
        log = pl_module.log

        def watched(name, value, **options):
            if not isinstance(value, torch.Tensor):
                self.numbers.add(name)
            log(name, value, **options)

        pl_module.log = watched

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        held = [*batch.values(), *trainer.strategy.model.parameters(), *trainer.strategy.model.buffers()]
        target = getattr(pl_module, "pair", None)
        held += list(target.target_model.parameters()) if target else []
        self.mode = HostWaits(held)
        self.mode.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.mode.__exit__(None, None, None)
        self.waits.append(self.mode.places)


@pytest.fixture
def counted(data, trainer):
    """Counts the waits of a module's steps."""

    def fit(module):
        counted = Counted()
        run = trainer(max_steps=3, limit_val_batches=0, log_every_n_steps=100, callbacks=[counted])
        run.fit(module, data)
        assert not counted.numbers
        return [len(places) for places in counted.waits]

    return fit


PATHS = {
    "forward": {"divergence": ForwardKL()},
    "acceptance": {"divergence": NegativeLogAcceptance(), "average": "sequence"},
    "several temperatures and labels": {
        "divergence": JensenShannon(),
        "temperature": Grid([0.5, 1.0]),
        "label_weight": 0.5,
    },
    "a random temperature": {"temperature": Uniform(0.5, 1.5)},
    "whole logits": {"chunk_tokens": 0},
}


@pytest.mark.parametrize("path", PATHS)
def test_a_step_waits_once(pair, counted, path):
    module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), **PATHS[path])
    assert counted(module) == [1, 1, 1]


def test_a_language_model_waits_for_nothing_once_it_is_tried(pair, counted):
    module = LanguageModelModule(str(pair / "target"), ModelShape(16, 1, 2))
    assert counted(module)[1:] == [0, 0]


def test_what_learns_from_its_loss_is_checked_at_once(pair, counted):
    module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), divergence=TAID())
    assert counted(module)[1:] == [2, 2]


def test_a_read_more_is_counted(pair, counted):
    class Curious(DistillationModule):
        def training_step(self, batch, batch_index):
            found = super().training_step(batch, batch_index)
            assert found["loss"] > 0
            assert batch["key"].tolist()
            return found

    assert counted(Curious(str(pair / "target"), draft=str(pair / "draft"))) == [3, 3, 3]
