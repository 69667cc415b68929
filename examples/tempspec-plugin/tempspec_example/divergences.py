"""A divergence that tempspec does not have. Axes: B batch, T positions, V vocabulary."""

from typing import Literal

import torch
from torch import Tensor

from tempspec.interfaces import Divergence

__all__ = ["Renyi"]

# The log-ratio that replaces an infinite one in gradients: -log of float32's smallest normal number.
_LARGEST_LOG_RATIO = 87.33655


class Renyi(Divergence):
    """Renyi divergence of an order between 0 and 1: near 1 it acts like forward KL, near 0 it forgives much more.

    `-log(sum p^a q^(1-a)) / (1 - a)`. Finite wherever the supports meet, also where the draft forbids a token.

    Args:
        order: a, strictly between 0 and 1; 0.5 is twice the Bhattacharyya distance.
        scale: `gradient` multiplies by T^2, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: order is not between 0 and 1.
    """

    source = "van Erven and Harremoes 2014, Renyi Divergence and Kullback-Leibler Divergence (arXiv 1206.2459)"

    def __init__(self, order: float = 0.5, scale: Literal["none", "gradient"] = "none") -> None:
        super().__init__(scale)
        if not 0 < order < 1:
            raise ValueError(f"order must be strictly between 0 and 1, got {order}: its limit 1 is ForwardKL")
        self.order = order

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """The divergence in nats, `[B, T]`; +inf for distributions that have no token in common."""
        logp_BTV, logq_BTV = _wide(logp_BTV), _wide(logq_BTV)
        joint_BTV = self.order * logp_BTV + (1 - self.order) * logq_BTV
        apart_BT = joint_BTV.amax(-1) == -torch.inf
        # logsumexp of nothing but -inf has no gradient: the operand is guarded, and the value is filled in after it.
        joint_BTV = joint_BTV.masked_fill(apart_BT[..., None], -_LARGEST_LOG_RATIO)
        value_BT = -joint_BTV.logsumexp(-1) / (1 - self.order)
        return value_BT.masked_fill(apart_BT, torch.inf)


def _wide(law: Tensor) -> Tensor:
    """The log-distribution in float32 or better."""
    return law if law.dtype == torch.float64 else law.float()
