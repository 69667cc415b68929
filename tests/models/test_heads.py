import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

from tempspec.models.heads import hidden_states, linear_head
from tests.tiny import gpt2

SIZES = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


def capped():
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS, final_logit_softcapping=30.0))


def scaled():
    return GraniteForCausalLM(GraniteConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, logits_scaling=2.0))


def adapted():
    model = gpt2()
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + inputs[0].sum(-1, keepdim=True))
    return model


def replaced():
    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model = gpt2()
    model.lm_head = Scaled(16, 24, bias=False)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_a_linear_head_turns_hidden_states_into_logits(training):
    model = gpt2().train(training)
    head = linear_head(model)
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    ids = torch.arange(8)[None]
    model.eval()
    torch.testing.assert_close(head(hidden_states(model, input_ids=ids)), model(ids).logits)


@pytest.mark.parametrize("make", [capped, scaled, adapted, replaced])
def test_anything_else_is_found_out(make):
    assert linear_head(make().eval()) is None


def test_a_cap_that_is_off_is_no_obstacle():
    assert linear_head(Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS, final_logit_softcapping=None))) is not None
