import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tempspec.errors import UserError
from tempspec.models.cutting import first_layers
from tempspec.models.loading import load_model, save_model
from tests.tiny import gpt2, llama


def small_llama(tie=False):
    return llama(layers=3, num_key_value_heads=2, tie_word_embeddings=tie)


def small_gpt2():
    return gpt2(layers=3)


def small_gemma3():
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            sliding_window=4,
        )
    )


@pytest.mark.parametrize("make", [small_llama, small_gpt2, small_gemma3, lambda: small_llama(tie=True)])
def test_all_layers_give_the_target_and_nothing_is_shared(make):
    target = make().eval()
    token_BT = torch.tensor([[1, 2, 3, 4, 5, 6]])
    whole = first_layers(target, 3)
    torch.testing.assert_close(whole(token_BT).logits, target(token_BT).logits, rtol=0, atol=0)
    pointers = {parameter.data_ptr() for parameter in target.parameters()}
    assert pointers.isdisjoint(parameter.data_ptr() for parameter in whole.parameters())
    one = first_layers(target, 1)
    assert one.config.num_hidden_layers == 1
    assert target.config.num_hidden_layers == 3
    assert not torch.equal(one(token_BT).logits, target(token_BT).logits)


@pytest.mark.parametrize(("own", "default"), [("cpu", "meta"), ("meta", "cpu")])
def test_first_layers_are_where_the_target_is(own, default):
    target = small_llama().bfloat16().to(own)
    with torch.device(default):
        draft = first_layers(target, 1)
    tensors = [*draft.parameters(), *draft.buffers()]
    assert {tensor.device.type for tensor in tensors} == {own}
    assert draft.dtype == torch.bfloat16


def test_first_layers_survive_a_folder(tmp_path):
    draft = first_layers(small_gemma3().eval(), 2)
    save_model(draft, None, tmp_path / "draft")
    token_BT = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "draft")(token_BT).logits, draft(token_BT).logits
    )


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 2])])
def test_evenly_spaced_layers(count, chosen):
    target = small_llama().eval()
    draft = first_layers(target, count, spacing="even")
    for layer, origin in zip(draft.model.layers, chosen, strict=True):
        for name, value in layer.state_dict().items():
            assert torch.equal(value, target.model.layers[origin].state_dict()[name])


def test_every_layer_keeps_what_the_config_says_of_it(tmp_path):
    config = SmolLM3Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        no_rope_layers=[1, 1, 1, 0],
        sliding_window=4,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=[1, 2, 3, 4],
        layer_types=["full_attention", "sliding_attention", "full_attention", "full_attention"],
    )
    draft = first_layers(SmolLM3ForCausalLM(config).eval(), 2, spacing="even")
    assert draft.config.no_rope_layers == [1, 0]
    assert draft.config.layer_types == ["full_attention", "full_attention"]
    assert draft.config.eos_token_id == [1, 2, 3, 4]
    assert [layer.self_attn.use_rope for layer in draft.model.layers] == [1, 0]
    save_model(draft, None, tmp_path / "draft")
    assert load_model(str(tmp_path / "draft")).config.no_rope_layers == [1, 0]


def test_a_narrow_draft_takes_the_leading_part_of_every_weight(tmp_path):
    target = small_llama().eval()
    whole = target.config.hidden_size
    draft = first_layers(target, 1, width=whole // 2)
    assert draft.config.hidden_size == whole // 2
    assert draft.config.intermediate_size == target.config.intermediate_size // 2
    for name, value in draft.state_dict().items():
        assert torch.equal(value, target.state_dict()[name][tuple(map(slice, value.shape))])
    save_model(draft, None, tmp_path / "draft")
    token_BT = torch.tensor([[1, 2, 3]])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "draft")
    torch.testing.assert_close(again(token_BT).logits, draft(token_BT).logits)


@pytest.mark.parametrize("width", [0, 3, 1000])
def test_widths_that_leave_no_whole_heads(width):
    with pytest.raises(UserError, match=f"draft_width must leave whole heads.*got {width}"):
        first_layers(small_llama(), 1, width=width)


@pytest.mark.parametrize("count", [0, 4, -1])
def test_layers_out_of_range(count):
    with pytest.raises(UserError, match=f"1 to 3, the target's number of layers, got {count}"):
        first_layers(small_llama(), count)
