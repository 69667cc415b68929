"""Analytic acceptance over every pair of temperatures, reduced over tokens with intervals over prompts (floor 4).

What is reduced comes from one forward pass of each model; the per-position values are `tempspec.core.acceptance`'s.

Axes: N token positions, A target temperatures, D draft temperatures, U prompts, S = A (D + 3) entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from tempspec.metrics.bootstrap import REPLICATES, Estimate, bootstrap_compute
from tempspec.metrics.prefixes import PromptSums
from tempspec.metrics.ratio import BootstrapRatio, weighted

__all__ = ["AcceptanceGrid", "GridEstimates"]

_BY_TARGET = ("argmax", "match", "entropy")
"""What there is one of for each target temperature, in the order of a grid's entries, after acceptance by pair."""


@dataclass(frozen=True, slots=True)
class GridEstimates:
    """The reduced grid of one prompt set. Total variation is 1 - `acceptance`.

    Attributes:
        target_temperatures: A values.
        draft_temperatures: D values.
        acceptance: `sum min(p, q)`, by (target, draft) temperature: what rejection sampling accepts.
        argmax: p of the draft's most likely token, by target temperature: what one-hot drafting gets accepted.
        match: `sum p q` at equal temperatures, by target temperature: what sampled matching accepts.
        entropy: of the target's law in nats, by target temperature.
    """

    target_temperatures: tuple[float, ...]
    draft_temperatures: tuple[float, ...]
    acceptance: dict[tuple[float, float], Estimate]
    argmax: dict[float, Estimate]
    match: dict[float, Estimate]
    entropy: dict[float, Estimate]


class AcceptanceGrid(BootstrapRatio):
    """Token-weighted means over a grid of temperatures, for one prompt set.

    Args:
        target_temperatures: A values, all different.
        draft_temperatures: D values, all different.
        replicates: bootstrap replicates.
        kwargs: torchmetrics' own options.

    >>> grid = AcceptanceGrid([1.0], [0.5, 1.0])
    >>> alpha_NAD = torch.tensor([[[0.5, 0.7]], [[0.7, 0.9]]])
    >>> row_NA = torch.tensor([[0.25], [0.75]])
    >>> grid.update(alpha_NAD, row_NA, row_NA, row_NA, torch.tensor([7, 8]), torch.tensor([1.0, 1.0]))
    >>> [f"{estimate.value:.2f}" for estimate in grid.grid().acceptance.values()], grid.grid().argmax[1.0].value
    (['0.60', '0.80'], 0.5)
    """

    higher_is_better = True
    prompt_key: list[Tensor] | Tensor
    prompt_sums: list[Tensor] | Tensor

    def __init__(
        self,
        target_temperatures: Sequence[float],
        draft_temperatures: Sequence[float],
        *,
        replicates: int = REPLICATES,
        **kwargs: Any,
    ) -> None:
        self.target_temperatures = tuple(target_temperatures)
        self.draft_temperatures = tuple(draft_temperatures)
        pairs = [("acceptance", t, d) for t in target_temperatures for d in draft_temperatures]
        self._entries = [*pairs, *((name, t, t) for name in _BY_TARGET for t in target_temperatures)]
        super().__init__(entries=len(self._entries), replicates=replicates, **kwargs)
        self.add_rows("prompt_key", dtype=torch.int64)
        self.add_rows("prompt_sums", 2, len(self._entries), dtype=torch.float64)

    def update(
        self,
        alpha_NAD: Tensor,
        argmax_NA: Tensor,
        match_NA: Tensor,
        entropy_NA: Tensor,
        key_N: Tensor,
        weight_N: Tensor,
    ) -> None:
        """Count token positions.

        Args:
            alpha_NAD: `sum min(p, q)`.
            argmax_NA: p of the draft's most likely token.
            match_NA: `sum p q` at equal temperatures.
            entropy_NA: the target's entropy in nats.
            key_N: each position's prompt, int64.
            weight_N: 1 for a real position, 0 for one of a filler row.
        """
        value_NS = torch.cat([alpha_NAD.flatten(1), argmax_NA, match_NA, entropy_NA], 1)
        counted_NS, weight_NS = weighted(value_NS, weight_N)
        self.add(counted_NS, weight_NS, key_N)
        found = PromptSums.of(counted_NS, weight_NS, key_N)
        self.prompt_key.append(found.key_U)  # type: ignore[union-attr] # a tensor only inside a sync context
        self.prompt_sums.append(torch.stack([found.numerator_US, found.denominator_US], 1))  # type: ignore[union-attr]

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override] # a torchmetric may return a dict of tensors
        """Value, low, high, number of prompts: `acceptance [A, D, 4]`, `argmax`, `match`, `entropy [A, 4]`."""
        computed_S4 = bootstrap_compute(self._local_sums())
        size, columns = len(self.target_temperatures), len(self.draft_temperatures)
        acceptance_S4, *by_target_A4 = computed_S4.split([size * columns, *[size] * len(_BY_TARGET)])
        acceptance_AD4 = acceptance_S4.unflatten(0, (size, columns))
        return {"acceptance": acceptance_AD4, **dict(zip(_BY_TARGET, by_target_A4, strict=True))}

    def grid(self) -> GridEstimates:
        """The estimates by temperature. A collective under DDP: every rank must call it."""
        acceptance: dict[tuple[float, float], Estimate] = {}
        by_target: dict[str, dict[float, Estimate]] = {name: {} for name in _BY_TARGET}
        for (name, target, draft), estimate in zip(self._entries, self.estimates(), strict=True):
            if name == "acceptance":
                acceptance[target, draft] = estimate
            else:
                by_target[name][target] = estimate
        return GridEstimates(self.target_temperatures, self.draft_temperatures, acceptance, **by_target)

    def by_prompt(self) -> dict[tuple[str, float, float], PromptSums]:
        """Each prompt's own sums, by metric, target and draft temperature; metrics are named as in `GridEstimates`.

        A collective under DDP: every rank must call it.
        """
        with self.sync_context(should_sync=self.sync_on_compute):
            numerator_US, denominator_US = dim_zero_cat(self.prompt_sums).unbind(1)
            found = PromptSums.of(numerator_US, denominator_US, dim_zero_cat(self.prompt_key))
        return {entry: found.entry(index) for index, entry in enumerate(self._entries)}
