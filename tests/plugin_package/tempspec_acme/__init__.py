"""Plugins of a third party: `tempspec.interfaces` and `tempspec.core` are all that they need."""

from typing import Literal

import torch
from torch import Tensor

from tempspec.core.divergences import forward_kl, reverse_kl
from tempspec.interfaces import Divergence, ScheduleContext, Temperatures, TemperatureSchedule

__all__ = ["Jeffreys", "Sawtooth"]


class Jeffreys(Divergence):
    """Jeffreys divergence: forward and reverse KL, mixed.

    Args:
        balance: the share of forward KL, 0 to 1.
        scale: `gradient` multiplies by T^2, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: balance is outside 0 to 1.
    """

    source = "Jeffreys 1946, An Invariant Form for the Prior Probability in Estimation Problems"

    def __init__(self, balance: float = 0.5, scale: Literal["none", "gradient"] = "none") -> None:
        super().__init__(scale)
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be between 0 and 1, got {balance}: 1 is forward KL, 0 reverse KL")
        self.balance = balance

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """The mixture in nats, `[B, T]`."""
        forward, reverse = forward_kl(logp_BTV, logq_BTV), reverse_kl(logp_BTV, logq_BTV)
        return self.balance * forward + (1 - self.balance) * reverse


class Sawtooth(TemperatureSchedule):
    """A temperature that climbs from low to high again and again.

    Args:
        low: where each tooth begins.
        high: where each tooth ends.
        period: the optimiser steps of one tooth.
    """

    def __init__(self, low: float = 0.5, high: float = 2.0, period: int = 100) -> None:
        self.low, self.high, self.period = low, high, period

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """The same temperature for the target and the draft, as scalars."""
        share = context.step % self.period / self.period
        temperature = torch.tensor(self.low + (self.high - self.low) * share)
        return Temperatures(target=temperature, draft=temperature)
