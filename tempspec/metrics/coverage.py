"""How much of the target's mass a draft vocabulary holds, over named temperatures (floor 4).

Axes: N positions, T temperatures.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from tempspec.core.reduce import or_one

__all__ = ["Coverage"]


class Coverage(Metric):
    """The mean mass of the target's law at a draft's tokens: no draft of them is accepted more often.

    Args:
        temperatures: of the target; 0 is argmax.
        kwargs: torchmetrics' own options.

    >>> coverage = Coverage([1.0])
    >>> coverage.update(torch.tensor([[0.5], [1.0]]), torch.tensor([1.0, 1.0]))
    >>> coverage.compute()
    {1.0: 0.75}
    """

    higher_is_better = True
    mass_T: Tensor
    weight: Tensor

    def __init__(self, temperatures: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperatures = tuple(temperatures)
        self.add_state("mass_T", torch.zeros(len(self.temperatures), dtype=torch.float64), "sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), "sum")

    def update(self, coverage_NT: Tensor, weight_N: Tensor) -> None:
        """Count token positions.

        Args:
            coverage_NT: `tempspec.core.vocabulary.coverage`.
            weight_N: 1 for a real position, 0 for one of a filler row.
        """
        self.mass_T += (coverage_NT.double() * weight_N.double()[:, None]).sum(0)
        self.weight += weight_N.double().sum()

    def compute(self) -> dict[float, float]:
        """The mean by temperature."""
        return dict(zip(self.temperatures, (self.mass_T / or_one(self.weight)).tolist(), strict=True))
