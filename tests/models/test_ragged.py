"""The ragged cache gives every architecture's own logits, whatever order and places tokens are fed in."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tempspec.errors import UserError
from tempspec.models import fast_linear as thin
from tempspec.models.ragged import RaggedModel, bucketed, check_rows, context_length, made_for

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOW = {"sliding_window": 6}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "qwen2": transformers.Qwen2Config(**SHAPE),
    "qwen2-window": transformers.Qwen2Config(**SHAPE, **WINDOW, use_sliding_window=True, max_window_layers=1),
    "qwen3": transformers.Qwen3Config(**SHAPE, head_dim=8),
    "mistral": transformers.MistralConfig(**SHAPE, sliding_window=None),
    "mistral-window": transformers.MistralConfig(**SHAPE, **WINDOW),
    "gemma": transformers.GemmaConfig(**SHAPE, head_dim=8),
    "gemma2": transformers.Gemma2Config(**SHAPE, **WINDOW, head_dim=8),
    "gemma3": transformers.Gemma3TextConfig(**SHAPE, **WINDOW, head_dim=8),
    "phi3": transformers.Phi3Config(**SHAPE),
    "gpt2": transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=None, eos_token_id=None
    ),
    "gpt-neox": transformers.GPTNeoXConfig(**SHAPE),
    "opt": transformers.OPTConfig(
        vocab_size=40,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def longrope(original, kind="phi3", **others):
    """Short factors up to `original` positions, for all rows of a batch whose longest row ends there."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0, 5.0, 6.0, 8.0]}
    rope |= {"original_max_position_embeddings": original, "factor": 4.0}
    if kind == "phi3":
        return transformers.Phi3Config(
            **SHAPE | {"pad_token_id": 0}, original_max_position_embeddings=original, rope_parameters=rope, **others
        )
    rope |= {"short_mscale": 1.0, "long_mscale": 1.3}
    return transformers.PhimoeConfig(**SHAPE, rope_parameters=rope, num_local_experts=2, **others)


@pytest.fixture(params=CONFIGS, ids=str)
def model(request, monkeypatch):
    monkeypatch.setattr(thin, "LEAST_WEIGHTS", 0)  # else no layer of models as small as these is turned
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)  # logits far from uniform
    return model


@torch.inference_mode()
def test_ragged_rows_with_rejections_see_the_models_own_logits(model):
    lengths = [3, 17, 9]
    tokens = torch.randint(2, 40, (3, 40), generator=torch.Generator().manual_seed(1))
    ragged = RaggedModel(model, slots=4, capacity=bucketed(64))
    rows = torch.tensor([0, 1, 2])
    ragged.fill(tokens[:, : max(lengths)], torch.zeros(3).long(), longest=0, rows=rows)
    for accepted in ([0, 2, 3], [3, 0, 1], [1, 1, 0]):  # of three drafted tokens; the rest is overwritten
        start = torch.tensor(lengths)
        columns = start[:, None] + torch.arange(4)
        wrong = torch.full((3, 4), 5)
        ragged.forward(wrong, start, longest=max(lengths))  # a rejected round leaves its keys behind
        logits = ragged.forward(tokens.gather(1, columns), start, longest=max(lengths))
        for row, length in enumerate(lengths):
            own = model(tokens[row : row + 1, : length + 4]).logits[0, length:]
            torch.testing.assert_close(logits[row], own, atol=2e-5, rtol=1e-4)
        lengths = [length + kept + 1 for length, kept in zip(lengths, accepted, strict=True)]


@torch.inference_mode()
def test_a_later_slot_can_be_filled_alone_and_in_chunks(model):
    tokens = torch.randint(2, 40, (1, 30), generator=torch.Generator().manual_seed(2))
    ragged = RaggedModel(model, slots=3, capacity=64)
    rows = torch.tensor([2])
    for start in (0, 10, 20):
        ragged.fill(tokens[:, start : start + 10], torch.tensor([start]), longest=start, rows=rows)
    token = torch.tensor([[7], [7], [7]])
    logits = ragged.forward(token, torch.tensor([0, 0, 30]), longest=30)[2, 0]
    own = model(torch.cat([tokens, token[:1]], 1)).logits[0, -1]
    torch.testing.assert_close(logits, own, atol=2e-5, rtol=1e-4)


PARENTS = [-1, 0, 0, 1, 1, 2, 5, 3]  # of each node of a tree; -1 is the row's earlier text


def path_to(node):
    return [] if node < 0 else [*path_to(PARENTS[node]), node]


def ancestry():
    """Which nodes each node sees, itself included."""
    visible = torch.zeros(len(PARENTS), len(PARENTS), dtype=torch.bool)
    for node in range(len(PARENTS)):
        visible[node, path_to(node)] = True
    return visible


@torch.inference_mode()
@pytest.mark.parametrize("shared", [True, False])
def test_every_node_of_a_tree_sees_its_path_alone(model, shared):
    lengths = [4, 11]
    tokens = torch.randint(2, 40, (2, 40), generator=torch.Generator().manual_seed(3))
    ragged = RaggedModel(model, slots=2, capacity=64)
    ragged.fill(tokens[:, : max(lengths)], torch.zeros(2).long(), longest=0, rows=torch.arange(2))
    nodes = tokens[:, 20 : 20 + len(PARENTS)]
    start = torch.tensor(lengths)
    visible = ancestry() if shared else ancestry().expand(2, -1, -1)
    logits = ragged.forward(nodes, start, longest=max(lengths), visible_RNN=visible)
    for row, length in enumerate(lengths):
        for node in range(len(PARENTS)):
            text = torch.cat([tokens[row, :length], nodes[row, path_to(node)]])
            own = model(text[None]).logits[0, -1]
            torch.testing.assert_close(logits[row, node], own, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_a_kept_path_is_the_text_that_later_tokens_see(model):
    length, paths = 9, [path_to(6), path_to(4)]
    tokens = torch.randint(2, 40, (2, 40), generator=torch.Generator().manual_seed(4))
    ragged = RaggedModel(model, slots=3, capacity=64)
    rows = torch.tensor([2, 0])
    ragged.fill(tokens[:, :length], torch.zeros(2).long(), longest=0, rows=rows)
    nodes = tokens[:, 20 : 20 + len(PARENTS)]
    start = torch.full((2,), length)
    ragged.forward(nodes, start, longest=length, rows=rows, visible_RNN=ancestry())
    widest = max(map(len, paths))
    padded = torch.tensor([path + [0] * (widest - len(path)) for path in paths])
    ragged.keep_path(start, padded, rows=rows)
    kept = start + torch.tensor([len(path) for path in paths])
    logits = ragged.forward(torch.full((2, 1), 7), kept, longest=int(kept.max()), rows=rows)
    for row, path in enumerate(paths):
        text = torch.cat([tokens[row, :length], nodes[row, path], torch.tensor([7])])
        torch.testing.assert_close(logits[row, 0], model(text[None]).logits[0, -1], atol=2e-5, rtol=1e-4)


def test_recurrent_layers_are_refused_by_name():
    config = transformers.Qwen3NextConfig(
        **SHAPE | {"num_hidden_layers": 4}, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16
    )
    with pytest.raises(UserError, match="linear_attention"):
        RaggedModel(AutoModelForCausalLM.from_config(config), slots=1, capacity=64)


@torch.inference_mode()
def test_the_cache_holds_the_bytes_of_its_capacity_and_no_more():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    ragged = RaggedModel(model, slots=2, capacity=64)
    for start in range(40):
        ragged.forward(torch.ones(2, 3).long(), torch.tensor([start, 0]), longest=start)
    layers, heads, size = 2, 2, 8
    assert ragged.cache.nbytes == 2 * layers * 2 * 64 * heads * size * 4


def test_a_row_ends_where_the_factors_change():
    assert context_length(longrope(32)) == context_length(longrope(32, "phimoe")) == 32
    assert made_for(longrope(32)) == 128
    nested = transformers.Gemma3TextConfig(**SHAPE)
    nested.rope_parameters["full_attention"] |= {"rope_type": "longrope", "original_max_position_embeddings": 48}
    dynamic = transformers.LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2}
    )
    assert [context_length(config) for config in (nested, dynamic)] == [48, 128]


def test_rows_of_training_end_there_too():
    check_rows("a/phi", longrope(32), 32)
    with pytest.raises(
        UserError, match=r"is 33, but a/phi changes its LongRoPE factors after 32 positions, .* lower it"
    ):
        check_rows("a/phi", longrope(32), 33)
    with pytest.raises(UserError, match="is 129, but a/llama was made for at most 128 positions: lower it"):
        check_rows("a/llama", CONFIGS["llama"], 129)
