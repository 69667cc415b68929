import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

from tempspec.decoding.engine import Engine
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.models.attention import use_attention
from tempspec.models.heads import linear_head
from tempspec.models.loading import ModelOptions, load_model, save_model
from tests.gguf_file import byte_level, small_llama


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
