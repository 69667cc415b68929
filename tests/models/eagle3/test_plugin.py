from types import SimpleNamespace

import pytest
import torch

from tempspec.errors import UserError
from tempspec.interfaces import HeadTarget
from tempspec.models.eagle3 import Eagle3, Eagle3Config
from tempspec.models.eagle3.config import default_states


def target(vocabulary=24, **sizes):
    torch.manual_seed(0)
    given = {"num_hidden_layers": 8, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4} | sizes
    width = given["hidden_size"]
    return HeadTarget(SimpleNamespace(**given), torch.randn(vocabulary, width), torch.randn(vocabulary, width))


@pytest.mark.parametrize(("layers", "states"), [(7, (2, 3, 4)), (30, (2, 15, 27)), (80, (2, 40, 77))])
def test_the_default_states_are_those_of_the_engines(layers, states):
    assert Eagle3().states(layers) == default_states(layers) == states


def test_a_target_of_few_layers_needs_states_by_name():
    with pytest.raises(UserError, match="7 layers or more, got 6"):
        Eagle3().states(6)
    assert Eagle3(states=[1, 2, 6]).states(6) == (1, 2, 6)
    with pytest.raises(UserError, match="states must be 0 to 6"):
        Eagle3(states=[1, 2, 7]).states(6)


def test_a_new_head_begins_with_the_targets_output_matrix():
    own = target()
    model = Eagle3().build(own)
    assert torch.equal(model.output_RH, own.output_VH)
    assert model.output_RH.data_ptr() != own.output_VH.data_ptr()
    ids = torch.tensor([1, 5, 23])
    assert torch.equal(Eagle3(draft_vocabulary=3).build(own, ids).output_RH, own.output_VH[ids])


def test_the_embedding_is_no_part_of_a_head():
    model = Eagle3().build(target(vocabulary=1000))
    shapes = [list(parameter.shape) for parameter in model.parameters()]
    assert shapes.count([1000, 16]) == 1  # the output matrix


def test_a_new_head_is_float32_whatever_the_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Eagle3().build(target())
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    weight = model.layers[0].mlp.up_proj.weight
    assert not torch.equal(weight, weight.bfloat16().float())


def test_rotary_frequencies_keep_their_precision():
    model = Eagle3().build(target())
    before = model.rotary.frequency_F.clone()
    assert torch.equal(model.to(torch.bfloat16).rotary.frequency_F, before)


def test_a_rotary_embedding_by_length_is_replaced_by_a_plain_one():
    scaled = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    assert Eagle3Config.for_target(target(rope_parameters=scaled).config, 24, (1, 2, 3)).rope_parameters == scaled
    long = {"rope_type": "longrope", "rope_theta": 500.0, "long_factor": [1.0], "short_factor": [1.0]}
    plain = Eagle3Config.for_target(target(rope_parameters=long).config, 24, (1, 2, 3)).rope_parameters
    assert plain == {"rope_type": "default", "rope_theta": 500.0}
    kinds = {"sliding_attention": {"rope_type": "default", "rope_theta": 9.0}, "full_attention": scaled}
    assert Eagle3Config.for_target(target(rope_parameters=kinds).config, 24, (1, 2, 3)).rope_parameters == scaled


def test_a_scaled_rotary_embedding_turns_slower():
    scaled = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    one, other = (Eagle3().build(target(**rope)).rotary.frequency_F for rope in ({}, {"rope_parameters": scaled}))
    torch.testing.assert_close(one, 4 * other)


@pytest.mark.parametrize(
    ("ids", "says"), [(None, "got none"), (torch.tensor([1, 2]), "got 2")], ids=lambda value: str(value)[:4]
)
def test_a_draft_vocabulary_needs_its_ids(ids, says):
    with pytest.raises(UserError, match=f"as many of the target's 24 ids, {says}"):
        Eagle3(draft_vocabulary=3).build(target(), ids)


def test_a_draft_vocabulary_of_all_tokens_is_refused():
    with pytest.raises(UserError, match="draft_vocabulary must be below the target's 24 tokens, got 24"):
        Eagle3(draft_vocabulary=24).build(target(), torch.arange(24))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"states": [3, 2, 1]}, "states must be two or more ascending"),
        ({"states": [3]}, "states must be two or more ascending"),
        ({"draft_vocabulary": 0}, "draft_vocabulary must be 1 or more"),
    ],
)
def test_an_option_out_of_its_range_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Eagle3(**options)


def test_the_law_is_zero_outside_of_the_draft_vocabulary():
    ids = torch.tensor([1, 5, 23])
    model = Eagle3(draft_vocabulary=3).build(target(), ids)
    hidden = torch.randn(2, 4, 16)
    law = model.target_logits(hidden).softmax(-1)
    assert law.shape == (2, 4, 24)
    torch.testing.assert_close(law[..., ids], model.logits(hidden).softmax(-1))
    assert int((law > 0).sum()) == 2 * 4 * 3
