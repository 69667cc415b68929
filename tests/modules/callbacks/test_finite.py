"""A loss that is no number: the step is left out by the optimiser, and told a step later where nobody waits."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tempspec.modules.callbacks import FiniteLoss, LastCheckpoint, NotFinite
from tests.modules.test_callbacks import Module, loader, saved, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec", "ignore:You defined a `validation_step` but"
)


class Learner(Module):
    """A weight that AdamW learns; the loss of one batch is broken."""

    fused = True

    def training_step(self, batch, batch_idx):
        loss = (self.weight - 3).square().sum()
        return loss * (math.inf if batch_idx == self.broken_at else 1)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=self.fused)


def fit(tmp_path, broken_at=None, rows=8, fused=True, late=True, **options):
    module = Learner(broken_at=broken_at)
    module.fused = fused
    callbacks = [FiniteLoss(late), LastCheckpoint(tmp_path), *options.pop("callbacks", [])]
    trainer(tmp_path, *callbacks, **options).fit(module, loader(rows))
    return module.weight.item()


def of_last(tmp_path):
    checkpoint = saved(tmp_path / "last.ckpt")
    return checkpoint["state_dict"]["weight"].item(), checkpoint["global_step"]


@pytest.mark.parametrize(("fused", "late", "steps"), [(True, True, 4), (False, True, 3), (True, False, 3)])
def test_the_broken_step_is_named_and_never_learned(tmp_path, fused, late, steps):
    whole = fit(tmp_path / "whole", rows=3)
    with pytest.raises(NotFinite, match=r"the loss is inf at step 3 \(rows with keys 3\)"):
        fit(tmp_path, broken_at=3, fused=fused, late=late)
    weight, taken = of_last(tmp_path)
    assert weight == pytest.approx(whole, rel=1e-6)
    assert taken == steps  # the step that was left out counts


def test_without_the_check_the_weights_are_spoiled(tmp_path):
    module = Learner(broken_at=3)
    trainer(tmp_path).fit(module, loader())
    assert not math.isfinite(module.weight.item())


@pytest.mark.parametrize("options", [{}, {"max_steps": 8}], ids=["epoch", "steps"])
def test_a_broken_last_step_is_found_before_the_end(tmp_path, options):
    with pytest.raises(NotFinite, match="at step 7"):
        fit(tmp_path, broken_at=7, **options)
    assert math.isfinite(of_last(tmp_path)[0])


def test_any_batch_of_an_accumulated_step_is_named(tmp_path):
    with pytest.raises(NotFinite, match=r"at step 1 \(rows with keys 2\)"):
        fit(tmp_path, broken_at=2, accumulate_grad_batches=2)


def test_no_checkpoint_is_made_of_a_broken_step(tmp_path):
    kept = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(NotFinite, match="at step 3"):
        fit(tmp_path, broken_at=3, callbacks=[kept])
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [f"epoch=0-step={n}.ckpt" for n in (1, 2, 3)]


def test_another_end_after_a_broken_step_is_told_and_saved(tmp_path):
    class Ending(Learner):
        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                raise RuntimeError("ended")
            return super().training_step(batch, batch_idx)

    whole = fit(tmp_path / "whole", rows=3)
    module = Ending(broken_at=3)
    with pytest.raises(RuntimeError, match="ended"):
        trainer(tmp_path, FiniteLoss(late=True), LastCheckpoint(tmp_path)).fit(module, loader())
    assert of_last(tmp_path) == (pytest.approx(whole, rel=1e-6), 4)


def test_a_momentum_that_a_first_step_makes_is_not_left_out(tmp_path):
    class Rolling(Learner):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, fused=True)

    with pytest.raises(NotFinite, match="at step 0"):
        trainer(tmp_path, FiniteLoss(late=True), LastCheckpoint(tmp_path)).fit(Rolling(broken_at=0), loader())
    assert not (tmp_path / "last.ckpt").exists()  # no step was taken
