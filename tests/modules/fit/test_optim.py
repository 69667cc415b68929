"""What is trained how, where nobody says it."""

import pytest
import torch

from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.optim import WarmupCosine, fine_tuning
from tempspec.modules.language_model import LanguageModelModule, ModelShape
from tempspec.plugins.schedules import Curriculum


class Huge(DistillationModule):
    """Its gradients are a thousand times too large; keeps their norm after clipping."""

    def training_step(self, batch, batch_index):
        out = super().training_step(batch, batch_index)
        return out | {"loss": 1000 * out["loss"]}

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.norm = torch.nn.utils.get_total_norm([one.grad for one in self.parameters() if one.grad is not None])


@pytest.fixture
def fitted(pair, data, trainer):
    """A module after a step."""

    def fit(module, **options):
        trainer(**{"max_steps": 1, "limit_val_batches": 0} | options).fit(module, data)
        return module

    return fit


def names(module, group):
    held = {id(parameter) for parameter in module.trainer.optimizers[0].param_groups[group]["params"]}
    return {name for name, parameter in module.named_parameters() if id(parameter) in held}


def test_a_draft_is_fine_tuned_by_default(pair, fitted):
    module = fitted(Huge(str(pair / "target"), draft=str(pair / "draft"), temperature=Curriculum()), max_steps=40)
    matrices, vectors, learned = module.trainer.optimizers[0].param_groups
    assert [group["initial_lr"] for group in (matrices, vectors, learned)] == [1e-4, 1e-4, 1e-3]
    assert [group["weight_decay"] for group in (matrices, vectors, learned)] == [0.1, 0, 0]
    assert all("norm" in name for name in names(module, 1))
    assert not any("norm" in name for name in names(module, 0))
    assert module.lr_schedulers().factor(0) == 0.5  # two of forty steps warm up
    assert module.norm == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("named", [None, lambda optimizer: WarmupCosine(optimizer, warmup=0.05)])
def test_the_first_step_has_the_rate_of_the_runs_length(pair, fitted, named):
    class First(Huge):
        rates = ()

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            self.rates += (optimizer.param_groups[0]["lr"],)
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    module = fitted(First(str(pair / "target"), draft=str(pair / "draft"), lr_scheduler=named), max_steps=3)
    assert module.rates[0] == pytest.approx(1e-4)  # one of three steps warms up; of a thousand it would be fifty
    assert module.rates[0] == module.rates[1] > module.rates[2]


@pytest.mark.parametrize(("value", "clipped"), [(0, False), (0.25, True)])
def test_the_trainers_word_on_clipping_counts(pair, fitted, value, clipped):
    module = fitted(Huge(str(pair / "target"), draft_layers=1), gradient_clip_val=value)
    assert (float(module.norm) == pytest.approx(value, rel=1e-4)) == clipped
    assert module.norm > 10 or clipped


def test_a_named_optimizer_is_torchs_own(pair, fitted):
    module = DistillationModule(
        str(pair / "target"), draft=str(pair / "draft"), optimizer=lambda p: torch.optim.AdamW(p, lr=2e-3)
    )
    for group in fitted(module).trainer.optimizers[0].param_groups:
        assert (group["initial_lr"], group["weight_decay"]) == (2e-3, 1e-2)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_of_a_named_fused_optimizer_are_clipped(pair, fitted, precision, fused):
    module = Huge(
        str(pair / "target"),
        draft=str(pair / "draft"),
        optimizer=lambda p: torch.optim.AdamW(p, lr=2e-3, fused=fused),
    )
    assert fitted(module, precision=precision).norm == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("pretrained", "rate"), [(False, 1e-3), (True, 1e-4)])
def test_random_weights_learn_at_a_higher_rate(pair, fitted, pretrained, rate):
    options = {"pretrained": str(pair / "draft")} if pretrained else {"shape": ModelShape(16, 1, 2)}
    module = fitted(LanguageModelModule(tokenizer=str(pair / "target"), **options))
    matrices, vectors = module.trainer.optimizers[0].param_groups
    assert [matrices["initial_lr"], vectors["weight_decay"]] == [rate, 0]


def test_one_line_says_which_defaults_were_taken():
    assert fine_tuning(True, True, 1.0) is None
    assert fine_tuning(False, True, 0.5) == (
        "fine-tuning: AdamW at 0.0001, weight decay of matrices only; for another set model.optimizer"
    )
