"""Tiny real models with known laws: small enough to enumerate, far enough apart to reject often."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def tiny_llama(seed: int, vocabulary: int = 5, *, layers: int = 1, gain: float = 4.0, context: int = 256):
    """A random Llama whose laws are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(gain * 8)
        for weight in model.model.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)
    return model


@pytest.fixture(scope="session")
def target():
    return tiny_llama(0)


@pytest.fixture(scope="session")
def draft():
    return tiny_llama(1)


@pytest.fixture(scope="session")
def flat_pair():
    """Flatter laws, closer to each other: long accepted runs show what looks ahead wrongly."""
    return tiny_llama(0, gain=1.0), tiny_llama(1, gain=1.0)


@pytest.fixture(scope="session")
def wide_pair():
    """A two-layer target and a draft with a learned-position architecture, 40 tokens."""
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=256, bos_token_id=None, eos_token_id=None
    )
    return tiny_llama(3, 40, layers=2, gain=2.0), GPT2LMHeadModel(config).eval()
