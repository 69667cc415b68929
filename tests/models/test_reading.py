import pytest
import torch
import transformers

from tempspec.models.reading import Reading, reading

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
GPT = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
APART = {
    "Llama": (transformers.LlamaConfig, SIZES),
    "Qwen2": (transformers.Qwen2Config, SIZES),
    "a short window": (transformers.MistralConfig, SIZES | {"sliding_window": 3}),
    "windows and not": (transformers.Gemma3TextConfig, SIZES | {"head_dim": 8, "sliding_window": 4}),
    "soft caps": (transformers.Gemma2Config, SIZES | {"head_dim": 8, "sliding_window": 4}),
    "learned positions": (transformers.GPT2Config, GPT),
    "experts": (transformers.MixtralConfig, SIZES | {"num_local_experts": 4}),
}
TOGETHER = {
    "positions of the mask": (transformers.OPTConfig, SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "ALiBi": (transformers.BloomConfig, {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "convolutions between": (transformers.Lfm2Config, SIZES | {"layer_types": ["conv", "full_attention"]}),
    "attention alone not cut": (
        transformers.XGLMConfig,
        {"vocab_size": 64, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    ),
}


def build(kind, options, dtype=torch.float32, gain=4.0):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kind(**options)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # larger than at the start of a training, as in a trained model
                parameter.mul_(gain)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", APART)
def test_attention_by_positions_parts_documents_without_a_mask(name, dtype):
    assert reading([build(*APART[name], dtype)]) == Reading(masked=False, apart=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TOGETHER)
def test_a_model_that_cannot_part_documents_is_found_out(name, dtype):
    assert reading([build(*TOGETHER[name], dtype)]) == Reading(masked=False, apart=False)


@pytest.mark.parametrize("name", APART | TOGETHER)
def test_documents_and_padded_rows_are_read_as_they_are_alone(name):
    model = build(*(APART | TOGETHER)[name]).eval()
    found = reading([model])
    ids = torch.randint(2, 64, (3, 9), generator=torch.Generator().manual_seed(0))
    position = torch.cat([torch.arange(4), torch.arange(5)])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * 9, [1] * 9, [1] * 3 + [0] * 6]),
        "position_ids": torch.stack([position, torch.arange(9), torch.arange(9)]),
    }
    with torch.no_grad():
        rows = model(**found.inputs(batch)).logits
        alone = {(0, 0, 4): ids[0, :4], (1, 0, 9): ids[1], (2, 0, 3): ids[2, :3]}
        if found.apart:
            alone[0, 4, 9] = ids[0, 4:]
        else:
            alone[0, 0, 9] = ids[0]
        for (row, start, end), own in alone.items():
            torch.testing.assert_close(rows[row, start:end], model(own[None]).logits[0], atol=2e-5, rtol=1e-4)


def test_a_model_that_looks_ahead_keeps_its_mask():
    model = build(*APART["Llama"])
    model.config.is_causal = False
    assert reading([model]) == Reading(masked=True, apart=False)


def test_several_models_are_read_in_the_way_that_suits_all():
    able, unable = build(*APART["Llama"]), build(*TOGETHER["positions of the mask"])
    assert reading([able, unable]) == Reading(masked=False, apart=False)


def test_trying_leaves_the_model_as_it_was():
    model = build(*APART["Llama"]).train()
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    reading([model])
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_too_small_to_tell_is_not_trusted():
    assert not reading(
        [
            build(
                transformers.MambaConfig,
                {"vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 1},
                torch.bfloat16,
                0.1,
            )
        ]
    ).apart


def test_a_context_of_a_few_tokens_is_kept_to():
    assert reading([build(transformers.GPT2Config, GPT | {"n_positions": 5})]).masked is False


def test_inputs_hold_a_mask_or_positions_and_never_both():
    batch = {name: torch.zeros(1, 2) for name in ("input_ids", "attention_mask", "position_ids")}
    plain = {name: value for name, value in batch.items() if name != "position_ids"}

    def names(way, given):
        return set(way.inputs(given)) - {"input_ids", "use_cache"}

    assert names(Reading(False, True), batch) == {"position_ids"}
    assert names(Reading(False, True), plain) == set()
    assert names(Reading(False, False), batch) == set()
    assert names(Reading(True, False), batch) == {"attention_mask"}
