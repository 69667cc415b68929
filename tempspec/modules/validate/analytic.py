"""A draft's acceptance at every pair of temperatures, counted over named sets without decoding (floor 5).

Axes: B batch, T positions, N the batch's response tokens, A target and D draft temperatures, C candidates.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.core.acceptance import Survey, Truncation, acceptance_grid, expected_tokens_by_position, survey
from tempspec.core.vocabulary import coverage
from tempspec.errors import UserError
from tempspec.interfaces import HeadModel
from tempspec.metrics.acceptance_grid import AcceptanceGrid
from tempspec.metrics.coverage import Coverage
from tempspec.metrics.draft_temperature import DraftTemperatureFit
from tempspec.models.conditioning import is_conditioned, set_temperature
from tempspec.models.head_draft import DraftModel
from tempspec.modules.head_steps import DraftStep, head_steps, read_target
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import Batch, LogitPairs, LogitSource, response
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
            read = read_target(draft, target, batch, source)
            self.count_steps(lambda: head_steps(draft, target, batch, source, self.steps, read=read), draft)
            return
        kept = Kept.of(response(batch))
        known = self.readings.of(target, batch, kept, source) if self.readings else source.of(target, batch, kept)
        self.count(batch, draft, lambda: source.pairs(known, source.of(draft, batch, kept)))

    def count_steps(self, steps: Callable[[], Iterable[DraftStep]], head: HeadModel) -> None:
        """Count a batch of a head, drafted token by drafted token.

        Args:
            steps: takes those of the batch; a conditioned head takes them anew at every temperature.
            head: the head.
        """
        for number, (batch, pairs, _) in enumerate(steps()):

            def again(number: int = number, pairs: LogitPairs = pairs) -> LogitPairs:
                return next(islice(steps(), number, None)).pairs if is_conditioned(head) else pairs

            self.count({**batch, "set_index": batch["set_index"] + number * self._sets}, head, again)
            if number == 0 and pairs.ids_R is not None:
                self._cover(batch, pairs, pairs.ids_R)

    def _cover(self, batch: Batch, pairs: LogitPairs, ids_R: Tensor) -> None:
        kept = Kept.of(response(batch))
        weight_N, set_N = (kept.rows(batch[name]) for name in ("weight", "set_index"))
        found_NT = torch.cat([coverage(p_NV, ids_R, self.temperatures) for p_NV, _ in pairs.pieces()])
        for index, counted in enumerate(self.coverage.values()):
            here = set_N == index
            counted.update(found_NT[here], weight_N[here])

    def count(self, batch: Batch, draft: DraftModel, pairs: Callable[[], LogitPairs]) -> None:
        """Count a batch.

        Args:
            batch: rows of any of the sets.
            draft: the draft, whose temperature is set where it is conditioned on one.
            pairs: runs the draft; both models' logits at the positions that `response` keeps.
        """
        kept = Kept.of(response(batch))
        key_N, weight_N, set_N = (kept.rows(batch[name]) for name in ("key", "weight", "set_index"))
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
        for p_NV, q_NV in pairs.pieces():
            found.append(survey(p_NV, q_NV, self.temperatures))
            if self.fit is not None:
                fits.append(self._fit_grid(self.fit, p_NV, q_NV, self.fit.candidates))
        return _joined(found), torch.cat(fits) if fits else None

    def _by_temperature(self, draft: torch.nn.Module, pairs: Callable[[], LogitPairs]) -> tuple[Survey, Tensor | None]:
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
