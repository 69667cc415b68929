import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tempspec.errors import UserError
from tempspec.models.heads import hidden_states
from tempspec.models.tapping import Taps, final_norm, head_target, tapped
from tests.tiny import gpt2, llama

LAYERS = 4
SIZES = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LAYERS}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def four_llama():
    return llama(layers=LAYERS)


def four_gpt2():
    return gpt2(layers=LAYERS)


def gemma3():
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **HEADS, sliding_window=4)).eval()


def with_every_norm_moved(model):
    """A final norm of ones would hide whether it was applied."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("make", [four_llama, gemma3, four_gpt2])
@torch.no_grad()
def test_the_final_norm_leads_to_the_hidden_states(make):
    model = with_every_norm_moved(make())
    found = tapped(model, [LAYERS], input_ids=IDS, use_cache=False)
    norm = final_norm(model)
    torch.testing.assert_close(norm(found.states[0]), found.hidden_BTH)
    model.base_model.register_forward_hook(lambda module, args, output: scaled(output))
    assert final_norm(model) is None


def scaled(output):
    output.last_hidden_state = 2 * output.last_hidden_state
    return output


@pytest.mark.parametrize("make", [four_llama, gemma3, four_gpt2])
@torch.no_grad()
def test_states_are_those_of_output_hidden_states(make):
    model = with_every_norm_moved(make())
    found = tapped(model, range(LAYERS + 1), input_ids=IDS, use_cache=False)
    expected = model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    for state in range(LAYERS):
        assert torch.equal(found.states[state], expected[state])
    assert torch.equal(found.hidden_BTH, hidden_states(model, input_ids=IDS, use_cache=False))
    assert torch.equal(found.hidden_BTH, expected[LAYERS])


@torch.no_grad()
def test_the_last_state_is_before_the_final_norm():
    model = with_every_norm_moved(four_llama())
    (last,), hidden = tapped(model, [LAYERS], input_ids=IDS, use_cache=False)
    assert torch.equal(model.model.norm(last), hidden)
    assert not torch.allclose(last, hidden)


@torch.no_grad()
def test_taps_follow_every_pass_and_leave_nothing():
    model = four_llama()
    with Taps(model, [2]) as taps:
        for ids in (IDS, IDS.flip(0)):
            model(input_ids=ids)
            assert torch.equal(taps.states[0], model(input_ids=ids, output_hidden_states=True).hidden_states[2])
    assert not model.model.layers[2]._forward_pre_hooks


def test_a_state_that_the_target_lacks_is_refused():
    with pytest.raises(UserError, match="states must be 0 to 4"):
        Taps(four_llama(), [2, 5])


def test_a_target_without_a_list_of_layers_is_refused():
    model = four_llama()
    model.config.num_hidden_layers = 7
    with pytest.raises(UserError, match="no list of its 7 layers"):
        Taps(model, [2])


def test_a_head_is_told_sizes_embeddings_and_output():
    model = four_llama()
    target = head_target(model)
    assert target.config.hidden_size == 16
    assert target.embedding_VH.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert not target.output_VH.requires_grad
