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
from tempspec.metrics.ratio import BootstrapRatio, to_estimate

__all__ = ["AcceptanceGrid", "GridEstimates"]


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
        rows = len(target_temperatures)
        super().__init__(entries=rows * (len(draft_temperatures) + 3), replicates=replicates, **kwargs)
        self.target_temperatures = tuple(target_temperatures)
        self.draft_temperatures = tuple(draft_temperatures)
        self.add_state("prompt_key", [], "cat")
        self.add_state("prompt_sums", [], "cat")
        self._start_prompts()

    def reset(self) -> None:
        """Forget everything counted."""
        super().reset()
        self._start_prompts()

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
        value_NS = torch.cat([alpha_NAD.flatten(1), argmax_NA, match_NA, entropy_NA], 1).double()
        weight_NS = weight_N.double()[:, None].expand_as(value_NS)
        counted_NS = torch.where(weight_NS > 0, value_NS * weight_NS, 0.0)
        self.add(counted_NS, weight_NS, key_N)
        found = PromptSums.of(counted_NS, weight_NS, key_N)
        self.prompt_key.append(found.key_U)  # type: ignore[union-attr] # a tensor only inside a sync context
        self.prompt_sums.append(torch.stack([found.numerator_US, found.denominator_US], 1))  # type: ignore[union-attr]

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override] # a torchmetric may return a dict of tensors
        """Value, low, high, number of prompts: `acceptance [A, D, 4]`, `argmax`, `match`, `entropy [A, 4]`."""
        return self._split(bootstrap_compute(self._local_sums()))

    def grid(self) -> GridEstimates:
        """The estimates by temperature. A collective under DDP: every rank must call it."""
        found = self._split(bootstrap_compute(self.sums()))
        pairs = [(target, draft) for target in self.target_temperatures for draft in self.draft_temperatures]
        rows = {
            name: dict(zip(self.target_temperatures, to_estimate(found[name]), strict=True))
            for name in ("argmax", "match", "entropy")
        }
        acceptance = dict(zip(pairs, to_estimate(found["acceptance"].flatten(0, 1)), strict=True))
        return GridEstimates(self.target_temperatures, self.draft_temperatures, acceptance, **rows)

    def by_prompt(self) -> dict[tuple[str, float, float], PromptSums]:
        """Each prompt's own sums, by metric, target and draft temperature; metrics are named as in `GridEstimates`.

        A collective under DDP: every rank must call it.
        """
        with self.sync_context(should_sync=self.sync_on_compute):
            key_U, both_U2S = dim_zero_cat(self.prompt_key), dim_zero_cat(self.prompt_sums)
            found = PromptSums.of(both_U2S[:, 0], both_U2S[:, 1], key_U)
        names = [("acceptance", t, d) for t in self.target_temperatures for d in self.draft_temperatures]
        names += [(name, t, t) for name in ("argmax", "match", "entropy") for t in self.target_temperatures]
        return {name: found.entry(index) for index, name in enumerate(names)}

    def _start_prompts(self) -> None:
        """Empty entries of the right types, as `BootstrapRatio` starts its own list."""
        entries = len(self.numerator_SW)
        self.prompt_key = [torch.empty(0, dtype=torch.int64, device=self.device)]
        self.prompt_sums = [torch.empty(0, 2, entries, dtype=torch.float64, device=self.device)]

    def _split(self, computed_S4: Tensor) -> dict[str, Tensor]:
        rows, columns = len(self.target_temperatures), len(self.draft_temperatures)
        acceptance_S4, argmax_A4, match_A4, entropy_A4 = computed_S4.split([rows * columns, rows, rows, rows])
        acceptance_AD4 = acceptance_S4.unflatten(0, (rows, columns))
        return {"acceptance": acceptance_AD4, "argmax": argmax_A4, "match": match_A4, "entropy": entropy_A4}
