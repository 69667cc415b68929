"""A draft's acceptance at every pair of temperatures, counted over named sets without decoding (floor 5).

Axes: B batch, T positions, N the batch's response tokens, A target and D draft temperatures, C candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.core.acceptance import Survey, Truncation, acceptance_grid, survey
from tempspec.errors import UserError
from tempspec.metrics.acceptance_grid import AcceptanceGrid
from tempspec.metrics.draft_temperature import DraftTemperatureFit
from tempspec.models.conditioning import is_conditioned, set_temperature
from tempspec.modules.loss import Heads, Logits, response

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
        draft: PreTrainedModel,
        target_temperatures: Sequence[float],
        sets: Sequence[str],
        truncation: Truncation,
        device: torch.device,
    ) -> None:
        """Look for draft temperatures as well; behind `start`.

        Args:
            draft: the draft.
            target_temperatures: those that a draft temperature is wanted for.
            sets: names of the sets to fit on; all where none is named.
            truncation: how predict cuts laws.
            device: where to count.

        Raises:
            UserError: the draft's weights depend on its temperature, or there is no such set.
        """
        if is_conditioned(draft):
            raise UserError(
                "fitted expected an ordinary draft, got one that is conditioned on the temperature; "
                "fold it with `tempspec export --draft FOLDER --temperature T --output FOLDER`"
            )
        names = list(self.grids)
        if unknown := [name for name in sets if name not in names]:
            raise UserError(f"fitted_on names {unknown[0]!r}, which is none of the validation sets {', '.join(names)}")
        self.fitted_on = [names.index(name) for name in sets or names]
        self.truncation = truncation
        self.fit = DraftTemperatureFit(target_temperatures).to(device)

    def count(self, batch: Mapping[str, Tensor], draft: PreTrainedModel, sides: Callable[[], Heads | Logits]) -> None:
        """Count a batch.

        Args:
            batch: rows of any of the sets.
            draft: the draft, whose temperature is set where it is conditioned on one.
            sides: runs the draft; both models' outputs at the positions that `response` keeps.
        """
        keep_BT = response(batch)
        key_N, weight_N, set_N = (
            batch[name][:, None].expand_as(keep_BT)[keep_BT] for name in ("key", "weight", "set_index")
        )
        fitting_N = weight_N * torch.isin(set_N, set_N.new_tensor(self.fitted_on))

        def survey_once() -> Survey:
            return self._survey(sides(), key_N, fitting_N)

        found = self._by_temperature(draft, survey_once) if is_conditioned(draft) else survey_once()
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

    def _survey(self, sides: Heads | Logits, key_N: Tensor, fitting_N: Tensor) -> Survey:
        """One forward pass of the draft at all pairs of temperatures; `fitting_N` weighs tokens in the fit."""
        found: list[Survey] = []
        tokens = 0
        for p_NV, q_NV in sides.pieces():
            here, tokens = slice(tokens, tokens + len(p_NV)), tokens + len(p_NV)
            if self.fit is not None:
                pairs = self.fit.target_temperatures, self.fit.candidates
                found_NAC = acceptance_grid(p_NV, q_NV, *pairs, self.truncation)
                self.fit.update(found_NAC, key_N[here], fitting_N[here])
            found.append(survey(p_NV, q_NV, self.temperatures))
        names = ("acceptance_NAD", "match_NA", "argmax_NA", "entropy_NA")
        return Survey(*(torch.cat([getattr(part, name) for part in found]) for name in names))

    def _by_temperature(self, draft: PreTrainedModel, survey_once: Callable[[], Survey]) -> Survey:
        """A conditioned draft is another model at every draft temperature: the columns of as many surveys."""
        found = []
        for heat in (0.0, *self.temperatures):  # the first is the argmax draft
            set_temperature(draft, heat)
            found.append(survey_once())
        set_temperature(draft, None)
        columns = list(enumerate(found[1:]))
        return Survey(
            torch.stack([each.acceptance_NAD[..., index] for index, each in columns], -1),
            torch.stack([each.match_NA[..., index] for index, each in columns], -1),
            found[0].argmax_NA,
            found[0].entropy_NA,
        )
