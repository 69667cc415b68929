"""A temperature schedule that tempspec does not have. Axes: B batch."""

import math
from typing import Literal

import torch

from tempspec.interfaces import ScheduleContext, Temperatures, TemperatureSchedule

__all__ = ["LogUniform"]


class LogUniform(TemperatureSchedule):
    """A temperature drawn anew for every batch or sequence, evenly in its logarithm: as often below 1 as above.

    A temperature divides logits, so halving and doubling are steps of one size; `Uniform` between 0.5 and 2 spends two
    thirds of its draws above 1.

    Args:
        low: the lowest temperature, above 0.
        high: the highest temperature, at least `low`.
        per: `batch` draws one for the batch, `sequence` one for each row.

    Raises:
        ValueError: the range is empty, or does not begin above 0.
    """

    def __init__(self, low: float = 0.5, high: float = 2.0, per: Literal["batch", "sequence"] = "batch") -> None:
        if not 0 < low <= high < math.inf:
            raise ValueError(f"expected 0 < low <= high, got {low} and {high}: 0.5 and 2 surround 1 evenly")
        self.low, self.high, self.per = low, high, per

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """A scalar or `[B, 1]`; all randomness comes from the context's generator, which a resumed run seeds alike."""
        shape = () if self.per == "batch" else (context.batch_size, 1)
        share = torch.rand(shape, generator=context.generator, device=context.generator.device)
        temperature = self.low * (self.high / self.low) ** share
        return Temperatures(target=temperature, draft=temperature)

    def bounds(self, total_steps: int | None) -> tuple[float, float]:
        """The range."""
        return self.low, self.high
