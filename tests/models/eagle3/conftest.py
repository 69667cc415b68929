"""Heads' folders made by hand from the formats' tables, without our exporter."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tempspec.interfaces import HeadTarget

V, R, H, INNER, HEADS, GROUPS, SIZE, LAYERS = 24, 6, 16, 20, 4, 2, 6, 12
IDS = torch.tensor([0, 3, 4, 9, 17, 23])


def head_target(layers=LAYERS):
    torch.manual_seed(7)
    config = SimpleNamespace(num_hidden_layers=layers, hidden_size=H, vocab_size=V, num_attention_heads=HEADS)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    config.get_text_config = lambda: config
    return HeadTarget(config, torch.randn(V, H), torch.randn(V, H))


def tensors(rows, dtype=torch.bfloat16):
    """The table of tensors; norms are no ones."""
    torch.manual_seed(3)
    shapes = {
        "fc.weight": (H, 3 * H),
        "layers.0.input_layernorm.weight": (H,),
        "layers.0.hidden_norm.weight": (H,),
        "layers.0.post_attention_layernorm.weight": (H,),
        "layers.0.self_attn.q_proj.weight": (HEADS * SIZE, 2 * H),
        "layers.0.self_attn.k_proj.weight": (GROUPS * SIZE, 2 * H),
        "layers.0.self_attn.v_proj.weight": (GROUPS * SIZE, 2 * H),
        "layers.0.self_attn.o_proj.weight": (H, HEADS * SIZE),
        "layers.0.mlp.gate_proj.weight": (INNER, H),
        "layers.0.mlp.up_proj.weight": (INNER, H),
        "layers.0.mlp.down_proj.weight": (H, INNER),
        "norm.weight": (H,),
        "lm_head.weight": (rows, H),
    }
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


LAYER = {
    "model_type": "llama",
    "hidden_size": H,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": SIZE,
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "rope_theta": 500.0,
    "vocab_size": V,
    "tie_word_embeddings": False,
    "attention_bias": False,
}


def plain(rows):
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        **LAYER,
        "draft_vocab_size": None if rows == V else rows,
        "torch_dtype": "bfloat16",
        "norm_before_residual": False,
    }


def speculators(rows):
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": dict(LAYER),
        "draft_vocab_size": rows,
        "norm_before_residual": False,
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": "someone/target", "architectures": ["LlamaForCausalLM"]},
        },
    }


CONFIGS = {"plain": plain, "speculators": speculators}


def write(folder, config, weights):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def by_hand(tmp_path):
    """Writes a folder of a format with a draft vocabulary of 6, or all of 24, tokens; `change` edits it first."""

    def make(format="plain", rows=R, change=lambda config, weights: None):
        config, weights = CONFIGS[format](rows), tensors(rows)
        if rows < V:
            weights["d2t"] = IDS - torch.arange(R)
            weights["t2d"] = torch.zeros(V, dtype=torch.bool).index_fill(0, IDS, True)
        change(config, weights)
        return write(tmp_path / "eagle3-head", config, weights)

    return make


@pytest.fixture
def target():
    return head_target()
