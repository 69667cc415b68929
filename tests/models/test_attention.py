from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTNeoConfig, GPTNeoForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tempspec.decoding.engine import Engine
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.models.attention import attending_in_groups, grouped_sdpa, use_attention
from tempspec.models.heads import linear_head
from tempspec.models.loading import ModelOptions, load_model, save_model
from tests.gguf_file import byte_level, small_llama
from tests.tiny import llama


def gemma2():
    config = Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=8,
        max_position_embeddings=64,
    )
    return Gemma2ForCausalLM(config)


def gpt_neo():
    config = GPTNeoConfig(
        vocab_size=32,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global"], 2]],
        max_position_embeddings=64,
    )
    return GPTNeoForCausalLM(config)


@pytest.mark.parametrize("make", [gemma2, gpt_neo])
def test_a_model_without_sdpa_loads_and_decodes_by_default(make, tmp_path):
    torch.manual_seed(0)
    save_model(make(), None, tmp_path / "x")
    model = load_model(str(tmp_path / "x"))
    assert model.config._attn_implementation == "eager"
    prompt = (3, 7, 9, 11, 2)
    (done,) = Engine(model, 32).run([Request(prompt, 0.0, max_new_tokens=12)])
    own = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert done.tokens == own[0, len(prompt) :].tolist()


@pytest.mark.parametrize("make", [gemma2, gpt_neo])
def test_an_attention_that_a_model_lacks_is_one_line(make, tmp_path):
    save_model(make(), None, tmp_path / "x")
    with pytest.raises(UserError, match="cannot attend by sdpa: ") as caught:
        load_model(str(tmp_path / "x"), attn_implementation="sdpa")
    assert "\n" not in str(caught.value)


def test_attention_changes_and_comes_back():
    model = small_llama(byte_level())
    own = model.config._attn_implementation
    use_attention(model, "eager")
    assert model.config._attn_implementation == "eager"
    use_attention(model, None)
    assert model.config._attn_implementation == own != "eager"


def test_a_head_is_tried_by_the_models_own_attention():
    model, seen = small_llama(byte_level()), []
    model.model.register_forward_pre_hook(lambda *_: seen.append(model.config._attn_implementation))
    own = model.config._attn_implementation
    use_attention(model, "eager")
    assert linear_head(model) is model.lm_head
    assert set(seen) == {own}
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "kernels-community/flash-attn3"])
def test_decoding_by_an_attention_without_masks_is_refused(name):
    with pytest.raises(UserError, match=r"takes a mask.*decoding_attn_implementation: sdpa"):
        ModelOptions(decoding_attn_implementation=name)
    options = ModelOptions(attn_implementation=name)
    assert options.attention(decoding=False) == name
    with pytest.raises(UserError, match="takes a mask"):
        options.attention(decoding=True)
    assert (
        ModelOptions(attn_implementation=name, decoding_attn_implementation="sdpa").attention(decoding=True) == "sdpa"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Grouped queries
# ---------------------------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """What an attention function looks at in a layer of six heads on two."""

    num_key_value_groups = 3
    is_causal = True


class Largest(TorchDispatchMode):
    """The largest number of elements that any operation made anew."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


def layer_inputs(new, dtype, past=50, rows=2, size=8):
    generator = torch.Generator().manual_seed(new)
    query = torch.randn(rows, 6, new, size, generator=generator, dtype=dtype)
    key, value = (torch.randn(rows, 2, past + new, size, generator=generator, dtype=dtype) for _ in "kv")
    place = torch.arange(past + new)
    seen = place <= past - torch.arange(rows)[:, None, None] * 7 + torch.arange(new)[:, None]
    return query, key, value, seen[:, None]


@pytest.mark.parametrize("new", [1, 2, 5])
@pytest.mark.parametrize("form", ["boolean", "added"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_grouped_attention_is_sdpa(new, form, dtype, tolerance):
    query, key, value, seen = layer_inputs(new, dtype)
    mask = seen if form == "boolean" else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
    own, _ = sdpa_attention_forward(Layer(), query, key, value, mask, scaling=0.3)
    got, _ = grouped_sdpa(Layer(), query, key, value, mask, scaling=0.3)
    assert got.shape == own.shape == (2, new, 6, 8)
    torch.testing.assert_close(got, own, rtol=tolerance, atol=tolerance)
    swapped, _ = grouped_sdpa(Layer(), query.flip(1), key, value, mask, scaling=0.3)  # other heads on other keys
    assert (swapped - own).abs().max() > 0.1


def test_grouped_attention_copies_no_keys():
    query, key, value, seen = layer_inputs(5, torch.float32, past=500)
    with Largest() as grouped:
        grouped_sdpa(Layer(), query, key, value, seen, scaling=0.3)
    with Largest() as plain:
        sdpa_attention_forward(Layer(), query, key, value, seen, scaling=0.3)
    assert grouped.elements < key.numel() < plain.elements


@pytest.mark.parametrize("shared", ["no mask", "every head has its own"])
def test_what_cannot_be_grouped_goes_the_plain_way(shared):
    query, key, value, seen = layer_inputs(5, torch.float64, past=0)
    mask = None if shared == "no mask" else seen.expand(-1, 6, -1, -1)
    own, _ = sdpa_attention_forward(Layer(), query, key, value, mask)
    got, _ = grouped_sdpa(Layer(), query, key, value, mask)
    assert torch.equal(got, own)


def test_a_run_groups_queries_and_leaves_the_model_as_it_was():
    target, asked = llama(2, 16, 1, num_attention_heads=4, num_key_value_heads=2, hidden_size=16), Request((3, 1), 0.0)
    seen = []
    hook = target.register_forward_pre_hook(lambda model, _: seen.append(model.config._attn_implementation))
    engine = Engine(target, 16)
    run = engine.run([replace(asked, max_new_tokens=4), replace(asked, max_new_tokens=1)])
    next(run)
    assert target.config._attn_implementation != "sdpa"
    run.close()
    assert target.config._attn_implementation == "sdpa"
    assert set(seen) != {"sdpa"}
    hook.remove()


def test_models_that_share_no_keys_keep_their_attention():
    alone, eager = llama(1, 16, 1, num_attention_heads=2, num_key_value_heads=2), llama(1, 16, 1)
    eager.set_attn_implementation("eager")
    with attending_in_groups(alone, eager, None):
        assert alone.config._attn_implementation == "sdpa"
        assert eager.config._attn_implementation == "eager"
