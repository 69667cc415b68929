"""What the tensors of an EAGLE-3 file mean, an entry at a time in float64: a second implementation (floor 3).

It shares no code with the network, so that an embedding and a feature that are swapped, or a position that is off, are
found in a head whose training and decoding agree with each other.

Axes: K states, N entries, T tokens, H hidden, L keys seen, A query heads, G key heads, D head size.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["Eagle3Reading"]


class Eagle3Reading:
    """A head in the plain format, with the default rotary embedding, read literally.

    Args:
        folder: with `config.json` and `model.safetensors`.
    """

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tensors = {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}

    def steps(self, states_KTH: Sequence[Tensor], embedded_TH: Tensor, entry: int, steps: int) -> list[Tensor]:
        """The hidden states `[H]` of one entry at each step: of a round of decoding that begins there.

        Args:
            states_KTH: the target's states of one text.
            embedded_TH: the embeddings of its tokens.
            entry: which; the text has `steps` tokens after it.
            steps: how many.
        """
        kept: list[tuple[Tensor, Tensor]] = []
        carry_H = torch.zeros(0, dtype=torch.float64)
        for place in range(entry + 1):
            features = torch.cat([state_TH[place] for state_TH in states_KTH]).double()
            carry_H, hidden_H = self._step(self.tensors["fc.weight"] @ features, embedded_TH[place + 1], place, kept)
        found = [hidden_H]
        for step in range(1, steps):
            carry_H, hidden_H = self._step(carry_H, embedded_TH[entry + 1 + step], entry + step, kept)
            found.append(hidden_H)
        return found

    def logits(self, hidden_H: Tensor) -> Tensor:
        """The logits of the file's own vocabulary."""
        return self.tensors["lm_head.weight"] @ hidden_H

    def _step(
        self, g_H: Tensor, e_H: Tensor, position: int, kept: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """What is handed on, and the input of the output matrix."""
        normed_H = self._norm("layers.0.hidden_norm", g_H)
        joined = torch.cat([self._norm("layers.0.input_layernorm", e_H.double()), normed_H])
        residual_H = normed_H if self.config["norm_before_residual"] else g_H
        x_H = residual_H + self._attention(joined, position, kept)
        inner_H = self._norm("layers.0.post_attention_layernorm", x_H)
        gate = silu(self.tensors["layers.0.mlp.gate_proj.weight"] @ inner_H)
        up = self.tensors["layers.0.mlp.up_proj.weight"] @ inner_H
        y_H = x_H + self.tensors["layers.0.mlp.down_proj.weight"] @ (gate * up)
        hidden_H = self._norm("norm", y_H)
        return (hidden_H if self.config.get("norm_output") else y_H), hidden_H

    def _attention(self, joined: Tensor, position: int, kept: list[tuple[Tensor, Tensor]]) -> Tensor:
        size = self.config["head_dim"]
        q_AD, k_GD, v_GD = (
            (self.tensors[f"layers.0.self_attn.{name}_proj.weight"] @ joined).view(-1, size) for name in "qkv"
        )
        kept.append((self._turned(k_GD, position), v_GD))
        q_AD, group = self._turned(q_AD, position), len(q_AD) // len(k_GD)
        heads = []
        for head, q_D in enumerate(q_AD):
            k_LD, v_LD = (torch.stack([one[head // group] for one in side]) for side in zip(*kept, strict=True))
            heads.append((k_LD @ q_D / size**0.5).softmax(0) @ v_LD)
        return self.tensors["layers.0.self_attn.o_proj.weight"] @ torch.cat(heads)

    def _turned(self, states: Tensor, position: int) -> Tensor:
        half = states.shape[-1] // 2
        base = self.config["rope_parameters"]["rope_theta"]
        angle = position * base ** -(torch.arange(half, dtype=torch.float64) / half)
        rotation = torch.polar(torch.ones_like(angle), angle)
        turned = torch.complex(states[..., :half], states[..., half:]) * rotation
        return torch.cat([turned.real, turned.imag], -1)

    def _norm(self, name: str, x_H: Tensor) -> Tensor:
        return self.tensors[f"{name}.weight"] * x_H / (x_H.square().mean() + self.config["rms_norm_eps"]).sqrt()
