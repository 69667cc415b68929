"""The draft temperature that accepts most, found in one pass over a text (floor 4).

Expected acceptance is known at every pair of temperatures from one forward pass of each model, so the search is a scan
of candidates whose sums are all kept: none is measured on other tokens than the others, and none costs a pass, unless
the draft is conditioned on its temperature.

Axes: N token positions, A target temperatures, D candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tempspec.metrics.bootstrap import REPLICATES, Estimate
from tempspec.metrics.ratio import BootstrapRatio, weighted

__all__ = ["CANDIDATES", "DraftTemperatureFit", "FittedTemperature"]

CANDIDATES = (0.0, *(round(0.05 * step, 2) for step in range(2, 41)))
"""Where tau_d is looked for: argmax, and 0.1 to 2 in steps of 0.05; the target temperatures join them."""
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class FittedTemperature:
    """The best draft temperature of one target temperature.

    Attributes:
        target_temperature: tau_t.
        draft_temperature: tau_d, the candidate with the most acceptance; of equal ones the nearest to tau_t.
        acceptance: `sum min(p, q)` there, on the text that it was chosen on.
        same: the same at tau_d = tau_t.
    """

    target_temperature: float
    draft_temperature: float
    acceptance: Estimate
    same: Estimate


class DraftTemperatureFit(BootstrapRatio):
    """Token-weighted acceptance at every candidate, and the best one of each target temperature.

    Args:
        target_temperatures: A values, at least 0 each.
        candidates: draft temperatures to choose from; the target temperatures are added.
        replicates: bootstrap replicates.
        kwargs: torchmetrics' own options.

    >>> import torch
    >>> fit = DraftTemperatureFit([1.0], [0.5])
    >>> fit.update(torch.tensor([[[0.75, 0.5]], [[0.5, 0.5]]]), torch.tensor([7, 8]), torch.tensor([1.0, 1.0]))
    >>> best = fit.fits()[0]
    >>> best.draft_temperature, best.acceptance.value, best.same.value
    (0.5, 0.625, 0.5)
    """

    higher_is_better = True

    def __init__(
        self,
        target_temperatures: Sequence[float],
        candidates: Sequence[float] = CANDIDATES,
        *,
        replicates: int = REPLICATES,
        **kwargs: Any,
    ) -> None:
        self.target_temperatures = tuple(dict.fromkeys(target_temperatures))
        self.candidates = tuple(sorted({*candidates, *target_temperatures}))
        entries = len(self.target_temperatures) * len(self.candidates)
        super().__init__(entries=entries, replicates=replicates, **kwargs)

    def update(self, alpha_NAD: Tensor, key_N: Tensor, weight_N: Tensor) -> None:
        """Count token positions: `sum min(p, q)`, each position's prompt (int64), 1 or 0 for a filler."""
        counted_NS, weight_NS = weighted(alpha_NAD.flatten(1), weight_N)
        self.add(counted_NS, weight_NS, key_N)

    def fits(self) -> list[FittedTemperature]:
        """The best of each target temperature. A collective under DDP: every rank must call it."""
        found, count = self.estimates(), len(self.candidates)
        rows = [found[start : start + count] for start in range(0, len(found), count)]
        return [self._best(target, row) for target, row in zip(self.target_temperatures, rows, strict=True)]

    def text(self) -> list[int]:
        """The keys of the texts counted, sorted. A collective under DDP: every rank must call it."""
        return sorted(set(self.sums().prompt_M.tolist()))

    def _best(self, target: float, row: list[Estimate]) -> FittedTemperature:
        by_candidate = dict(zip(self.candidates, row, strict=True))
        most = max(estimate.value for estimate in row)
        best = min(
            (candidate for candidate, estimate in by_candidate.items() if estimate.value >= most - _TIE),
            key=lambda candidate: abs(candidate - target),
        )
        return FittedTemperature(target, best, by_candidate[best], by_candidate[target])
