"""A draft's acceptance at every pair of temperatures, counted over named sets without decoding (floor 5).

Axes: B batch, T positions, N the batch's response tokens, A target and D draft temperatures, C candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise, starmap
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.core.acceptance import Truncation, acceptance_grid, expected_tokens_by_position
from tempspec.core.survey import Survey
from tempspec.errors import UserError
from tempspec.interfaces import HeadModel
from tempspec.metrics.acceptance_grid import AcceptanceGrid
from tempspec.metrics.coverage import Coverage
from tempspec.metrics.draft_temperature import DraftTemperatureFit
from tempspec.models.conditioning import is_conditioned, set_temperature
from tempspec.models.head_draft import DraftModel
from tempspec.modules.head_steps import DraftStep, head_steps, joined, read_target
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import Batch, LogitPairs, LogitSource, Piece, response
from tempspec.modules.validate.readings import TargetReadings

__all__ = ["Means", "Measurement"]


class Means(NamedTuple):
    """What a run logs of a validation.

    Attributes:
        values: acceptance at equal temperatures and coverage, by set.
        acceptance: the mean of all acceptance.
        block_efficiency: tokens per round at the served temperatures, the extra one included, if each drafted token is
            accepted as often as after the text's own tokens.
    """

    values: dict[str, float]
    acceptance: float
    block_efficiency: float


@dataclass
class Measurement:
    """What validate and test count.

    Args:
        temperatures: of target and draft; 0 is argmax.
        grids: the sets' grids by name, in the order that a batch's `set_index` counts; of a head those of its first
            drafted token, followed by those of the second, which are called `NAME/2`, and so on.
        coverage: of the sets, where the draft knows some of the target's tokens alone.
        fit: the draft temperature that serves each target temperature best; None where nobody asked.
        fitted_on: the sets that it is fitted on, by their numbers.
        truncation: how laws are cut where it is to serve.
        steps: drafted tokens whose acceptance is counted: of a language model the first one, which is like all.
        served: the temperatures whose tokens per round are counted; all where none is named.
        drafted: tokens of a round.
        readings: what the target gave on batches that were measured before; None where each is to be read again, as
            with a target in parts, which all processes read at once.
    """

    temperatures: list[float]
    grids: dict[str, AcceptanceGrid] = field(default_factory=dict)
    coverage: dict[str, Coverage] = field(default_factory=dict)
    fit: DraftTemperatureFit | None = None
    fitted_on: list[int] = field(default_factory=list)
    truncation: Truncation = field(default_factory=Truncation)
    steps: int = 1
    served: list[float] = field(default_factory=list)
    drafted: int = 1
    readings: TargetReadings | None = field(default_factory=TargetReadings)
    _sets: int = 0

    @classmethod
    def of(cls, temperatures: Sequence[float], served: Sequence[float]) -> "Measurement":
        """One over some temperatures and those that are served, each once.

        Raises:
            UserError: there is none, or one is negative.
        """
        if not temperatures or min(temperatures) < 0:
            raise UserError(f"validation_temperatures must be 0 or more, at least one, got {temperatures}")
        return cls(list(dict.fromkeys([*temperatures, *served])), served=list(served))

    def start(
        self, names: Sequence[str], device: torch.device, draft: DraftModel | None = None, drafted: int = 1
    ) -> None:
        """Forget everything counted; begin a grid for each set.

        Args:
            names: of the sets.
            device: where to count.
            draft: what is measured.
            drafted: tokens of a round; those of a head have grids of their own.
        """
        self.drafted = max(1, drafted)
        self.steps = self.drafted if isinstance(draft, HeadModel) else 1
        covers = isinstance(draft, HeadModel) and draft.ids_R is not None
        places = [*names, *(f"{name}/{number}" for number in range(2, self.steps + 1) for name in names)]
        self.grids = {place: AcceptanceGrid(self.temperatures, self.temperatures).to(device) for place in places}
        self.coverage = {name: Coverage(self.temperatures).to(device) for name in names if covers}
        self._sets = len(names)

    def start_fit(
        self,
        target_temperatures: Sequence[float],
        sets: Sequence[str],
        truncation: Truncation,
        device: torch.device,
    ) -> None:
        """Look for draft temperatures as well; after `start`.

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

    def read(self, batch: Batch, draft: DraftModel, target: PreTrainedModel, source: LogitSource) -> None:
        """Run both models on a batch, and count it.

        Args:
            batch: rows of any of the sets.
            draft: what is measured.
            target: runs once, whatever the draft is; not at all on a batch that `readings` knows.
            source: runs both.
        """
        if isinstance(draft, HeadModel):
            self._read_head(batch, draft, target, source)
            return
        kept = Kept.of(response(batch))
        known = self.readings.of(target, batch, kept, source) if self.readings else source.of(target, batch, kept)
        self.count(batch, draft, lambda: source.pairs(known, source.of(draft, batch, kept)))

    def _read_head(self, batch: Batch, head: HeadModel, target: PreTrainedModel, source: LogitSource) -> None:
        readings = None if source.whole else self.readings

        def known(batch: Batch, _: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
            assert readings is not None
            return readings.tapped(target, batch, head.states, source)

        read = read_target(head, target, batch, source, None if readings is None else known)
        self._count_steps(lambda: list(head_steps(head, target, batch, source, self.steps, read=read)), head)

    def _count_steps(self, steps: Callable[[], Sequence[DraftStep]], head: HeadModel) -> None:
        """Count a batch of a head, drafted token by drafted token; all of them read one law of the target.

        Args:
            steps: takes those of the batch; a conditioned head takes them anew at every temperature.
            head: the head.
        """
        taken: Sequence[DraftStep] = []

        def together() -> LogitPairs:
            nonlocal taken
            taken = steps()
            return joined(taken)

        found, fit_NAC = self._found(head, together)
        ends = list(accumulate((len(step.kept.place_N) for step in taken), initial=0))
        for number, (step, here) in enumerate(zip(taken, starmap(slice, pairwise(ends)), strict=True)):
            counted = {**step.batch, "set_index": step.batch["set_index"] + number * self._sets}
            self._add(counted, step.kept, found.of(here), None if fit_NAC is None else fit_NAC[here])
            if number == 0:
                self._cover(step, found.of(here))

    def _cover(self, step: DraftStep, found: Survey) -> None:
        weight_N, set_N = (step.kept.rows(step.batch[name]) for name in ("weight", "set_index"))
        for index, counted in enumerate(self.coverage.values()):
            here = set_N == index
            assert found.covered_NA is not None
            counted.update(found.covered_NA[here], weight_N[here])

    def count(self, batch: Batch, draft: DraftModel, pairs: Callable[[], LogitPairs]) -> None:
        """Count a batch.

        Args:
            batch: rows of any of the sets.
            draft: the draft, whose temperature is set where it is conditioned on one.
            pairs: runs the draft; both models' logits at the positions that `response` keeps.
        """
        self._add(batch, Kept.of(response(batch)), *self._found(draft, pairs))

    def _found(self, draft: DraftModel, pairs: Callable[[], LogitPairs]) -> tuple[Survey, Tensor | None]:
        return self._by_temperature(draft, pairs) if is_conditioned(draft) else self._at_once(pairs())

    def _add(self, batch: Batch, kept: Kept, found: Survey, fit_NAC: Tensor | None) -> None:
        key_N, weight_N, set_N = (kept.rows(batch[name]) for name in ("key", "weight", "set_index"))
        if self.fit is not None and fit_NAC is not None:
            self.fit.update(fit_NAC, key_N, weight_N * torch.isin(set_N, set_N.new_tensor(self.fitted_on)))
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

    def means(self) -> Means:
        """What a run logs. A collective under DDP: every rank must call it."""
        values: dict[str, float] = {}
        found = {name: self.diagonal(name) for name in self.grids}
        for name, same in found.items():
            values |= {f"{name}/acceptance_T{temperature:g}": value for temperature, value in same.items()}
        for name, covered in self.coverage.items():
            shares = covered.compute()
            values |= {f"{name}/coverage_T{temperature:g}": value for temperature, value in shares.items()}
        means = [sum(same.values()) / len(same) for same in found.values()]
        return Means(values, sum(means) / max(len(means), 1), self._tokens_a_round(found))

    def _tokens_a_round(self, found: Mapping[str, Mapping[float, float]]) -> float:
        """The mean over sets and served temperatures of the tokens that a round is expected to give."""
        rounds = [
            expected_tokens_by_position(
                [
                    found[name if number == 1 or self.steps == 1 else f"{name}/{number}"][temperature]
                    for number in range(1, self.drafted + 1)
                ]
            )
            for name in list(found)[: self._sets]
            for temperature in self.served or self.temperatures
        ]
        return sum(rounds) / max(len(rounds), 1)

    def diagonal(self, name: str) -> dict[float, float]:
        """A set's acceptance at equal temperatures. A collective under DDP: every rank must call it."""
        found = self.grids[name].grid().acceptance
        return {temperature: found[temperature, temperature].value for temperature in self.temperatures}

    def _at_once(self, pairs: LogitPairs) -> tuple[Survey, Tensor | None]:
        """One pass of the draft at all pairs of temperatures, and at the fit's, `[N, A, C]`."""
        found: list[Survey] = []
        fits: list[Tensor] = []
        for piece in pairs.pieces():
            found.append(piece.survey(self.temperatures))
            if self.fit is not None:
                fits.append(self._fit_grid(self.fit, piece, self.fit.candidates))
        place = pairs.place_in_chunks
        return Survey.joined(found).of(place), torch.cat(fits)[place] if fits else None

    def _by_temperature(self, draft: torch.nn.Module, pairs: Callable[[], LogitPairs]) -> tuple[Survey, Tensor | None]:
        """The same of a conditioned draft, which is another model at every temperature: as many passes."""

        def at(temperature: float) -> LogitPairs:
            set_temperature(draft, temperature)
            return pairs()

        argmax, *found = (_survey(at(temperature), self.temperatures) for temperature in (0.0, *self.temperatures))
        fit_NAC = None
        if (fit := self.fit) is not None:
            fits = []
            for temperature in fit.candidates:
                given = at(temperature)
                pieces = [self._fit_grid(fit, piece, [temperature]) for piece in given.pieces()]
                fits.append(torch.cat(pieces)[given.place_in_chunks])
            fit_NAC = torch.cat(fits, -1)
        set_temperature(draft, None)
        columns = list(enumerate(found))
        acceptance_NAD = torch.stack([each.acceptance_NAD[..., index] for index, each in columns], -1)
        match_NA = torch.stack([each.match_NA[..., index] for index, each in columns], -1)
        return Survey(acceptance_NAD, match_NA, argmax.argmax_NA, argmax.entropy_NA, argmax.covered_NA), fit_NAC

    def _fit_grid(self, fit: DraftTemperatureFit, piece: Piece, candidates: Sequence[float]) -> Tensor:
        """Acceptance at the fit's target temperatures and these draft temperatures, `[N, A, C]`."""
        return acceptance_grid(*piece.whole(), fit.target_temperatures, candidates, self.truncation)


def _survey(pairs: LogitPairs, temperatures: Sequence[float]) -> Survey:
    """One survey of all tokens, in their order."""
    return Survey.joined([piece.survey(temperatures) for piece in pairs.pieces()]).of(pairs.place_in_chunks)
