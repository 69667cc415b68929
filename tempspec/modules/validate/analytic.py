"""A draft's acceptance at every pair of temperatures, counted over named sets without decoding (floor 5).

Axes: B batch, T positions, N the batch's response tokens, A target and D draft temperatures, C candidates.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.core.acceptance import Survey, Truncation, acceptance_grid, survey
from tempspec.errors import UserError
from tempspec.metrics.acceptance_grid import AcceptanceGrid
from tempspec.metrics.draft_temperature import DraftTemperatureFit
from tempspec.models.conditioning import is_conditioned, set_temperature
from tempspec.modules.outputs import Batch, LogitPairs, response

__all__ = ["Measurement"]


@dataclass
class Measurement:
    """What validate and test count.

    Args:
        temperatures: of target and draft; 0 is argmax.
        grids: the sets' grids by name, in the order that a batch's `set_index` counts.
        fit: the draft temperature that serves each target temperature best; None where nobody asked.
        fitted_on: the sets that it is fitted on, by their numbers.
        truncation: how laws are cut where it is to serve.
    """

    temperatures: list[float]
    grids: dict[str, AcceptanceGrid] = field(default_factory=dict)
    fit: DraftTemperatureFit | None = None
    fitted_on: list[int] = field(default_factory=list)
    truncation: Truncation = field(default_factory=Truncation)

    def start(self, names: Sequence[str], device: torch.device) -> None:
        """Forget everything counted; begin a grid for each set."""
        self.grids = {name: AcceptanceGrid(self.temperatures, self.temperatures).to(device) for name in names}

    def start_fit(
        self,
        target_temperatures: Sequence[float],
        sets: Sequence[str],
        truncation: Truncation,
        device: torch.device,
    ) -> None:
        """Look for draft temperatures as well; behind `start`.

        Args:
            target_temperatures: those that a draft temperature is wanted for.
            sets: names of the sets to fit on; all where none is named.
            truncation: how predict cuts laws.
            device: where to count.

        Raises:
            UserError: there is no such set.
        """
        names = list(self.grids)
        if unknown := [name for name in sets if name not in names]:
            raise UserError(f"fitted_on names {unknown[0]!r}, which is none of the validation sets {', '.join(names)}")
        self.fitted_on = [names.index(name) for name in sets or names]
        self.truncation = truncation
        self.fit = DraftTemperatureFit(target_temperatures).to(device)

    def count(self, batch: Batch, draft: PreTrainedModel, pairs: Callable[[], LogitPairs]) -> None:
        """Count a batch.

        Args:
            batch: rows of any of the sets.
            draft: the draft, whose temperature is set where it is conditioned on one.
            pairs: runs the draft; both models' logits at the positions that `response` keeps.
        """
        keep_BT = response(batch)
        key_N, weight_N, set_N = (
            batch[name][:, None].expand_as(keep_BT)[keep_BT] for name in ("key", "weight", "set_index")
        )
        fitting_N = weight_N * torch.isin(set_N, set_N.new_tensor(self.fitted_on))

        if is_conditioned(draft):
            found, fit_NAC = self._by_temperature(draft, pairs)
        else:
            found, fit_NAC = self._at_once(pairs())
        if self.fit is not None and fit_NAC is not None:
            self.fit.update(fit_NAC, key_N, fitting_N)
        for index, grid in enumerate(self.grids.values()):
            here = set_N == index
            if here.any():
                grid.update(
                    found.acceptance_NAD[here],
                    found.argmax_NA[here],
                    found.match_NA[here],
                    found.entropy_NA[here],
                    key_N[here],
                    weight_N[here],
                )

    def diagonal(self, name: str) -> dict[float, float]:
        """A set's acceptance at equal temperatures. A collective under DDP: every rank must call it."""
        found = self.grids[name].grid().acceptance
        return {temperature: found[temperature, temperature].value for temperature in self.temperatures}

    def _at_once(self, pairs: LogitPairs) -> tuple[Survey, Tensor | None]:
        """One pass of the draft at all pairs of temperatures, and at the fit's, `[N, A, C]`."""
        found: list[Survey] = []
        fits: list[Tensor] = []
        for p_NV, q_NV in pairs.pieces():
            found.append(survey(p_NV, q_NV, self.temperatures))
            if self.fit is not None:
                fits.append(self._fit_grid(self.fit, p_NV, q_NV, self.fit.candidates))
        return _joined(found), torch.cat(fits) if fits else None

    def _by_temperature(self, draft: PreTrainedModel, pairs: Callable[[], LogitPairs]) -> tuple[Survey, Tensor | None]:
        """The same of a conditioned draft, which is another model at every temperature: as many passes."""

        def at(temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
            set_temperature(draft, temperature)
            return pairs().pieces()

        argmax, *found = (
            _joined([survey(*pair, self.temperatures) for pair in at(temperature)])
            for temperature in (0.0, *self.temperatures)
        )
        fit_NAC = None
        if (fit := self.fit) is not None:
            fits = [
                torch.cat([self._fit_grid(fit, *pair, [temperature]) for pair in at(temperature)])
                for temperature in fit.candidates
            ]
            fit_NAC = torch.cat(fits, -1)
        set_temperature(draft, None)
        columns = list(enumerate(found))
        acceptance_NAD = torch.stack([each.acceptance_NAD[..., index] for index, each in columns], -1)
        match_NA = torch.stack([each.match_NA[..., index] for index, each in columns], -1)
        return Survey(acceptance_NAD, match_NA, argmax.argmax_NA, argmax.entropy_NA), fit_NAC

    def _fit_grid(self, fit: DraftTemperatureFit, p_NV: Tensor, q_NV: Tensor, candidates: Sequence[float]) -> Tensor:
        """Acceptance at the fit's target temperatures and these draft temperatures, `[N, A, C]`."""
        return acceptance_grid(p_NV, q_NV, fit.target_temperatures, candidates, self.truncation)


def _joined(parts: Sequence[Survey]) -> Survey:
    """One survey of the positions of several."""
    names = ("acceptance_NAD", "match_NA", "argmax_NA", "entropy_NA")
    return Survey(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
