"""The network of an EAGLE-3 head: one Llama layer on three of the target's states (floor 3).

g = fc(low, mid, high) of token i, or the layer's own output of the step before; e is the embedding of token i + 1. The
layer's attention reads the norms of e and of g side by side, its residual is g. Li et al. 2025 (EAGLE-3,
arXiv 2503.01840).

Axes: B rows, N entries, H hidden, A query heads, G key heads, D head size, F rotary frequencies, R the head's
vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tempspec.errors import UserError
from tempspec.interfaces import Exact, HeadModel, HeadStep, Keys
from tempspec.models.eagle3.config import STATIC_ROPE, Eagle3Config

__all__ = ["Eagle3Model"]


class Rotary(Exact):
    """Rotary positions with frequencies in float32, whatever the head's dtype."""

    frequency_F: Tensor

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        # Imported here, so that listing the plugins does not take seconds more.
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        made = LlamaRotaryEmbedding(
            LlamaConfig(
                hidden_size=config.num_attention_heads * config.head_dim,
                num_attention_heads=config.num_attention_heads,
                head_dim=config.head_dim,
                max_position_embeddings=config.max_position_embeddings,
                rope_parameters=dict(config.rope_parameters),
            )
        )
        self.register_buffer("frequency_F", made.inv_freq.float(), persistent=False)
        self.scale = float(made.attention_scaling)

    def forward(self, position_BN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, `[B, 1, N, F]` each."""
        wide = torch.promote_types(dtype, torch.float32)
        angle_B1NF = (position_BN[..., None].to(wide) * self.frequency_F.to(wide))[:, None]
        return (angle_B1NF.cos() * self.scale).to(dtype), (angle_B1NF.sin() * self.scale).to(dtype)


def rotated(states_BAND: Tensor, cos_B1NF: Tensor, sin_B1NF: Tensor) -> Tensor:
    """States turned by their positions; the two halves of a head are the two parts of its complex numbers."""
    real, imaginary = states_BAND.chunk(2, -1)
    return torch.cat(
        [real * cos_B1NF - imaginary * sin_B1NF, imaginary * cos_B1NF + real * sin_B1NF],
        -1,
    )


class Attention(nn.Module):
    """Llama's attention over an input that is twice as wide as its output."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        width, size = 2 * config.hidden_size, config.head_dim
        self.head_dim = size
        self.q_proj = nn.Linear(width, config.num_attention_heads * size, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * size, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * size, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * size, config.hidden_size, bias=False)

    def forward(self, joined: Tensor, rotation: tuple[Tensor, Tensor], keys: Keys) -> Tensor:
        """From `[B, N, 2H]` to `[B, N, H]`."""
        query_BAND, key_BGND, value_BGND = (
            project(joined).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen_BAND = keys.attend(rotated(query_BAND, *rotation), rotated(key_BGND, *rotation), value_BGND)
        return self.o_proj(seen_BAND.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Llama's gated MLP."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden_BNH: Tensor) -> Tensor:
        """`[B, N, H]` to the same."""
        return self.down_proj(silu(self.gate_proj(hidden_BNH)) * self.up_proj(hidden_BNH))


class Layer(nn.Module):
    """The head's only layer."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = config.norm_before_residual
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.hidden_norm = nn.RMSNorm(width, eps)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.self_attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, embedded_BNH: Tensor, carry_BNH: Tensor, rotation: tuple[Tensor, Tensor], keys: Keys) -> Tensor:
        """The layer's output, `[B, N, H]`."""
        normed_BNH = self.hidden_norm(carry_BNH)
        residual_BNH = normed_BNH if self.norm_before_residual else carry_BNH
        joined = torch.cat([self.input_layernorm(embedded_BNH), normed_BNH], -1)
        hidden_BNH = residual_BNH + self.self_attn(joined, rotation, keys)
        return hidden_BNH + self.mlp(self.post_attention_layernorm(hidden_BNH))


class Eagle3Model(HeadModel):
    """An EAGLE-3 head; its parameters have the names of the files.

    Args:
        config: its sizes.
        ids_R: the target's ids that it can draft, ascending; None for all.

    Raises:
        UserError: a size, an activation or a rotary embedding that it does not have.
    """

    def __init__(self, config: Eagle3Config, ids_R: Tensor | None = None) -> None:
        super().__init__(config.states, config.vocab_size, ids_R)
        _check(config, ids_R)
        width, rows = config.hidden_size, config.draft_vocab_size or config.vocab_size
        self.config = config
        self.fc = nn.Linear(len(config.states) * width, width, bias=False)
        self.layers = nn.ModuleList([Layer(config)])
        self.norm = nn.RMSNorm(width, config.rms_norm_eps)
        self.lm_head = nn.Linear(width, rows, bias=False)
        self.rotary = Rotary(config)

    @property
    def output_RH(self) -> Tensor:
        """See `HeadModel.output_RH`."""
        return self.lm_head.weight

    def start(self, states: Sequence[Tensor]) -> Tensor:
        """See `HeadModel.start`: g."""
        return self.fc(torch.cat([state.to(self.fc.weight.dtype) for state in states], -1))

    def step(self, carry_BNC: Tensor, token_BN: Tensor, embedded_BNH: Tensor, keys: Keys, number: int) -> HeadStep:
        """See `HeadModel.step`; what is handed on is the layer's output, before the norm or after it."""
        rotation = self.rotary(keys.position_BN, carry_BNC.dtype)
        output_BNH = self.layers[0](embedded_BNH.to(carry_BNC.dtype), carry_BNC, rotation, keys)
        hidden_BNH = self.norm(output_BNH)
        return HeadStep(hidden_BNH, hidden_BNH if self.config.norm_output else output_BNH)


def _check(config: Eagle3Config, ids_R: Tensor | None) -> None:
    """Refuse what the network would compute otherwise than the configuration says.

    Raises:
        UserError: naming it.
    """
    if config.hidden_act != "silu":
        raise UserError(f"an EAGLE-3 head has a SiLU-gated MLP, got hidden_act {config.hidden_act}")
    kind = config.rope_parameters["rope_type"]
    if kind not in STATIC_ROPE:
        raise UserError(f"an EAGLE-3 head needs a rotary embedding of {', '.join(STATIC_ROPE)}, got {kind}")
    if config.head_dim % 2:
        raise UserError(f"head_dim must be even for a rotary embedding, got {config.head_dim}")
    rows = config.draft_vocab_size or config.vocab_size
    if (ids_R is None and rows != config.vocab_size) or (ids_R is not None and len(ids_R) != rows):
        known = "none" if ids_R is None else str(len(ids_R))
        raise UserError(
            f"a draft vocabulary of {rows} tokens needs as many of the target's {config.vocab_size} ids, got {known}"
        )
