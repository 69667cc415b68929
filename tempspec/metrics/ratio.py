"""Ratios of sums with an interval over prompts, as torchmetrics (floor 4).

Axes: N observations, S entries of a vector metric, W = 1 + replicates.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from tempspec.interfaces import Exact
from tempspec.metrics.bootstrap import (
    REPLICATES,
    Estimate,
    Sums,
    bootstrap_compute,
    bootstrap_update,
    difference_estimate,
    paired_quotient,
)

__all__ = ["BootstrapRatio", "ClusteredRatio", "paired_difference", "paired_ratio", "to_estimate", "weighted"]


class BootstrapRatio(Exact, Metric):
    """The states that every ratio over prompts shares. A subclass implements `update` and calls `add` in it.

    States stay float64 whatever precision the module that holds them is moved to: sums in bf16 would stop growing.

    Args:
        entries: S, the ratios kept side by side; all share their prompts' weights.
        replicates: bootstrap replicates.
        kwargs: torchmetrics' own options.
    """

    full_state_update = False
    is_differentiable = False
    numerator_SW: Tensor
    denominator_SW: Tensor
    seen: list[Tensor] | Tensor

    def __init__(self, *, entries: int = 1, replicates: int = REPLICATES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.replicates = replicates
        zeros_SW = torch.zeros(entries, 1 + replicates, dtype=torch.float64)
        self.add_state("numerator_SW", zeros_SW, "sum")
        self.add_state("denominator_SW", zeros_SW, "sum")
        self._empty: dict[str, Tensor] = {}
        self.add_rows("seen", 2, dtype=torch.int64)

    def add_rows(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        """Add a state that grows by rows of a shape; ranks join theirs.

        It is never an empty list: torchmetrics gathers that as float32 numbers, which ruins the other ranks' rows.
        """
        self.add_state(name, [], "cat")
        self._empty[name] = torch.empty(0, *shape, dtype=dtype)
        self._start(name)

    def reset(self) -> None:
        """Forget everything counted."""
        super().reset()
        for name in self._empty:
            self._start(name)

    def add(self, numerator_NS: Tensor, denominator_NS: Tensor, key_N: Tensor) -> None:
        """Count observations; see `bootstrap_update`."""
        sums = bootstrap_update(numerator_NS, denominator_NS, key_N, self.replicates)
        # Out of place: torchmetrics keeps aliases of its states, and predict makes them inference tensors.
        self.numerator_SW = self.numerator_SW + sums.numerator_SW
        self.denominator_SW = self.denominator_SW + sums.denominator_SW
        self.seen.append(sums.seen_M2)  # type: ignore[union-attr] # a tensor only inside a sync context

    def compute(self) -> Tensor:
        """Value, low, high and number of prompts, float64 `[4]`, or `[S, 4]` of a vector."""
        return bootstrap_compute(self._local_sums()).squeeze(0)

    def estimates(self) -> list[Estimate]:
        """One estimate an entry. A collective under DDP: every rank must call it."""
        return to_estimate(bootstrap_compute(self.sums()))

    def estimate(self) -> Estimate:
        """The estimate of a metric with one entry. A collective under DDP: every rank must call it."""
        (estimate,) = self.estimates()
        return estimate

    def sums(self) -> Sums:
        """The sums over all ranks, for paired estimates. A collective under DDP: every rank must call it."""
        with self.sync_context(should_sync=self.sync_on_compute):
            return self._local_sums()

    def _local_sums(self) -> Sums:
        return Sums(self.numerator_SW.clone(), self.denominator_SW.clone(), dim_zero_cat(self.seen).clone())

    def _start(self, name: str) -> None:
        setattr(self, name, [self._empty[name].to(self.device)])


class ClusteredRatio(BootstrapRatio):
    """`sum numerator / sum denominator`, with an interval over the prompts that the observations belong to.

    >>> ratio = ClusteredRatio()
    >>> ratio.update(torch.tensor([1.0, 3.0, 2.0, 2.0, 1.0, 3.0]), torch.full((6,), 4.0), torch.arange(6))
    >>> print(ratio.estimate())
    .500 [.250, .750]
    """

    def update(self, numerator_N: Tensor, denominator_N: Tensor, key_N: Tensor) -> None:
        """Count observations: numerators, denominators (at least 0) and prompt keys (int64), all `[N]`."""
        self.add(numerator_N[:, None], denominator_N[:, None], key_N)


def paired_difference(a: BootstrapRatio, b: BootstrapRatio) -> Estimate:
    """`a - b` of two scalar metrics over the same prompts. A collective under DDP.

    Raises:
        ValueError: the prompts differ.
    """
    (estimate,) = to_estimate(difference_estimate(a.sums(), b.sums()))
    return estimate


def paired_ratio(a: BootstrapRatio, b: BootstrapRatio) -> Estimate:
    """`a / b` of two scalar metrics over the same prompts. A collective under DDP.

    Raises:
        ValueError: the prompts differ.
    """
    (estimate,) = to_estimate(bootstrap_compute(paired_quotient(a.sums(), b.sums())))
    return estimate


def weighted(value_NS: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
    """Numerators and denominators of a weighted mean, float64 `[N, S]`; what has weight 0 may hold anything.

    >>> numerator_NS, denominator_NS = weighted(torch.tensor([[0.5], [torch.nan]]), torch.tensor([1.0, 0.0]))
    >>> numerator_NS.tolist(), denominator_NS.tolist()
    ([[0.5], [0.0]], [[1.0], [0.0]])
    """
    weight_NS = weight_N.double()[:, None].expand_as(value_NS)
    return torch.where(weight_NS > 0, value_NS.double() * weight_NS, 0.0), weight_NS


def to_estimate(computed_S4: Tensor) -> list[Estimate]:
    """The records of what `bootstrap_compute` returned."""
    return [Estimate(value, low, high, int(prompts)) for value, low, high, prompts in computed_S4.tolist()]
