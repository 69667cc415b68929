import copy

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tempspec.errors import UserError
from tempspec.models import decodable, ragged
from tempspec.models.decodable import check_decodable
from tempspec.models.ragged import RaggedModel

from .test_ragged import CONFIGS, longrope


def random(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().to(dtype)


@pytest.fixture
def llama():
    return random(CONFIGS["llama"])


@pytest.fixture
def no_mask(monkeypatch):
    """Every token sees what lies behind it, as in a model that does not heed the cache's mask."""
    monkeypatch.setattr(RaggedModel, "_additive", lambda self, hidden_RNL: self._seen.expand(hidden_RNL.shape)[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_of_any_precision_passes(dtype):
    check_decodable(random(CONFIGS["llama"], dtype))


def test_other_logits_are_refused(llama, no_mask):
    with pytest.raises(UserError, match=r"a llama cannot be decoded: .* got others; choose another"):
        check_decodable(llama)


def test_a_model_is_tried_once(llama, monkeypatch):
    tried, distance = [], decodable._distance
    monkeypatch.setattr(decodable, "_distance", lambda ragged: tried.append(ragged.model) or distance(ragged))
    for model in (llama, llama, copy.deepcopy(llama), llama):
        check_decodable(model)
    assert len(tried) == 2


@pytest.mark.parametrize("training", [False, True])
def test_a_model_is_left_as_it_was(llama, training):
    llama.train(training)
    before = copy.deepcopy(llama.state_dict())
    check_decodable(llama)
    assert all(module.training is training for module in llama.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in llama.parameters())
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


def test_logits_that_are_no_numbers_are_left_to_decoding(llama):
    torch.nn.init.constant_(llama.lm_head.weight, torch.nan)
    check_decodable(llama)


def test_a_refused_model_keeps_its_mode():
    model = random(transformers.BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=4)).train()
    with pytest.raises(UserError, match="a bloom cannot be decoded"):
        check_decodable(model)
    assert model.training


def test_factors_chosen_by_the_longest_row_are_found_by_trying(monkeypatch):
    """As in code of a model's author, whose configuration says nothing of it."""
    model, same = random(longrope(32)), random(longrope(32))
    for weight in (*model.parameters(), *same.parameters()):
        weight.data.mul_(5 if weight.ndim > 1 else 1)  # else positions hardly matter
    check_decodable(same)
    monkeypatch.setattr(ragged, "factor_switch", lambda config: None)
    with pytest.raises(UserError, match=r"a phi3 cannot be decoded: .* got others; choose another"):
        check_decodable(model)
