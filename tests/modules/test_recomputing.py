"""Activations that are computed again: the same gradients, fewer tensors kept, and nothing changed outside of fit."""

import pytest
import torch

from tempspec.errors import UserError
from tempspec.models.eagle3 import Eagle3, Eagle3Model
from tempspec.models.loading import load_model
from tempspec.models.recomputing import recompute_activations
from tempspec.models.tapping import head_target
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.online_text import OnlineText
from tempspec.modules.language_model import LanguageModelModule, ModelShape
from tests.tiny import gpt2


class Kept(DistillationModule):
    """Counts the numbers that the draft's forward pass keeps, and notes the gradients of the first step."""

    def training_step(self, batch, batch_index):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.numel()) or value, lambda v: v):
            result = super().training_step(batch, batch_index)
        self.__dict__.setdefault("kept", []).append(sum(kept))
        return result

    def on_before_optimizer_step(self, optimizer):
        if "gradients" not in self.__dict__:
            learned = {name: value for name, value in self.draft.named_parameters() if value.requires_grad}
            self.__dict__["gradients"] = {name: value.grad.clone() for name, value in learned.items()}
        super().on_before_optimizer_step(optimizer)


def stepped(pair, data, trainer, **options):
    module = Kept(str(pair / "target"), **{"draft_layers": 2} | options)
    trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    return module


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk_tokens": 0},
        {"chunk_tokens": 16},
        {"conditioning_rank": 2, "temperature": 0.7},
        {"online": OnlineText(writer="draft", max_new_tokens=4)},
    ],
    ids=["plain", "whole logits", "chunks", "conditioned", "online"],
)
def test_gradients_are_equal_and_fewer_activations_are_kept(pair, data, trainer, options):
    torch.manual_seed(0)
    plain = stepped(pair, data, trainer, **options)
    torch.manual_seed(0)
    again = stepped(pair, data, trainer, gradient_checkpointing=True, **options)
    assert again.kept[0] < 0.7 * plain.kept[0]
    for name, value in plain.gradients.items():
        torch.testing.assert_close(again.gradients[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"chunk_tokens": 5}], ids=["plain", "chunks"])
def test_a_heads_gradients_are_bit_for_bit_equal(pair, data, trainer, options):
    options |= {"draft_layers": None, "head": Eagle3(states=[0, 1, 2])}
    torch.manual_seed(0)
    plain = stepped(pair, data, trainer, **options)
    torch.manual_seed(0)
    again = stepped(pair, data, trainer, gradient_checkpointing=True, **options)
    assert again.kept[0] < 0.4 * plain.kept[0]
    assert plain.gradients.keys() == again.gradients.keys()
    assert all(torch.equal(value, again.gradients[name]) for name, value in plain.gradients.items())


def test_a_head_that_unrolls_itself_is_refused(pair):
    class Own(Eagle3Model):
        def unrolled(self, *args):
            return iter(())

    head = Eagle3(states=[0, 1, 2]).build(head_target(load_model(str(pair / "target"))))
    with pytest.raises(UserError, match="gradient_checkpointing is not for a Own, which unrolls its steps itself"):
        recompute_activations(Own(head.config))


def test_measuring_and_decoding_compute_nothing_again(pair, data, trainer):
    ran = []
    module = DistillationModule(str(pair / "target"), draft_layers=1, gradient_checkpointing=True)
    trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    module.draft.model.layers[0].register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    trainer(limit_val_batches=1).validate(module, data)
    assert ran
    assert not any(ran)
    assert DistillationModule(str(pair / "target"), draft_layers=1).draft_training.gradient_checkpointing is False


def test_a_language_model_computes_activations_again(pair, data, trainer):
    module = LanguageModelModule(
        tokenizer=str(pair / "target"), shape=ModelShape(16, 2, 2), gradient_checkpointing=True
    )
    trainer(max_steps=2, limit_val_batches=0).fit(module, data)
    assert all(layer.gradient_checkpointing for layer in module.model.model.layers)


def test_a_model_whose_layers_cannot_run_again_is_one_line(monkeypatch):
    model = gpt2()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="gradient_checkpointing is not for a gpt2"):
        recompute_activations(model)
