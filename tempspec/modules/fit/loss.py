"""What fit minimises: an objective over the response tokens of a batch (floor 5). It knows no model.

Axes: B batch, T positions, N the batch's response tokens, V vocabulary, G temperatures at once.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from tempspec.core.reduce import masked_sum_and_count, or_one
from tempspec.core.sparse import SparseLogits
from tempspec.errors import UserError
from tempspec.interfaces import Divergence, LossContext, ScheduleContext, Summary, Temperatures, TemperatureSchedule
from tempspec.modules.fit.objective import (
    Head,
    Objective,
    Result,
    Summaries,
    chunked,
    pieces,
    plain,
    summaries,
    summarise,
)

__all__ = [
    "Cached",
    "FitLoss",
    "Heads",
    "Logits",
    "Moment",
    "Report",
    "Sides",
    "Tally",
    "TokenSelection",
    "generation_temperature",
    "response",
]

Batch = Mapping[str, Tensor]


@dataclass
class TokenSelection:
    """Learn only the tokens that the draft can still gain on: those where it loses most to a reference draft.

    Xiao et al. 2025 (AdaSPEC, arXiv 2510.19779).

    Args:
        reference: folder or hub name of the reference, a draft that was distilled on all tokens.
        fraction: the share of a batch's tokens that is kept, in (0, 1].

    Raises:
        UserError: fraction is out of range.
    """

    reference: str
    fraction: float = 0.4

    def __post_init__(self) -> None:
        """Refuse to keep nothing."""
        if not 0 < self.fraction <= 1:
            raise UserError(f"selection.fraction must be in (0, 1], got {self.fraction}; the paper takes 0.4")


class Sides(Protocol):
    """Both models' outputs on the kept tokens, whole or in the making."""

    def loss(self, objective: Objective) -> Result:
        """The loss, with gradients for the draft."""

    def summaries(self, needs: frozenset[Summary]) -> Summaries:
        """What schedules ask for."""


@dataclass(frozen=True)
class Logits:
    """Whole logits over the real ids, for models whose head is more than a linear map; the draft may lack some."""

    logits_p_NV: Tensor
    logits_q_NV: Tensor

    def loss(self, objective: Objective) -> Result:
        """See `tempspec.modules.fit.objective.plain`."""
        return plain(*self._common, objective)

    @torch.no_grad()
    def summaries(self, needs: frozenset[Summary]) -> Summaries:
        """See `tempspec.modules.fit.objective.summarise`."""
        return summarise(*self._common, needs)

    @property
    def _common(self) -> tuple[Tensor, Tensor]:
        """Both over the ids that both have: a loss knows no other."""
        common = min(self.logits_p_NV.shape[-1], self.logits_q_NV.shape[-1])
        return self.logits_p_NV[..., :common], self.logits_q_NV[..., :common]

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Both logits, at once."""
        yield self.logits_p_NV, self.logits_q_NV


@dataclass(frozen=True)
class Heads:
    """Hidden states and heads; logits exist for a chunk of tokens at a time.

    Attributes:
        target: the target's side.
        draft: the draft's.
        vocabulary: the number of real ids; a head may have more rows, or fewer.
        chunk: tokens at a time; None chooses.
    """

    target: Head
    draft: Head
    vocabulary: int
    chunk: int | None = None

    def loss(self, objective: Objective) -> Result:
        """See `tempspec.modules.fit.objective.chunked`."""
        return chunked(self.target, self.draft, self._common, objective, self.chunk)

    def summaries(self, needs: frozenset[Summary]) -> Summaries:
        """See `tempspec.modules.fit.objective.summaries`."""
        return summaries(self.target, self.draft, self._common, needs, self.chunk)

    @property
    def _common(self) -> int:
        """The ids that both have: a loss knows no other."""
        return min(len(self.target.weight_VH), len(self.draft.weight_VH), self.vocabulary)

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """See `tempspec.modules.fit.objective.pieces`."""
        return pieces(self.target, self.draft, self.vocabulary, self.chunk)


@dataclass(frozen=True)
class Cached:
    """What a cache has kept of the target, and the draft's hidden states and head, or its whole logits."""

    teacher: SparseLogits
    draft: Head | Tensor
    vocabulary: int
    chunk: int | None = None

    def loss(self, objective: Objective) -> Result:
        """As `Heads` and `Logits`."""
        if isinstance(self.draft, Head):
            return chunked(self.teacher, self.draft, self.vocabulary, objective, self.chunk)
        return plain(self.teacher, self.draft[:, : self.vocabulary], objective)

    def summaries(self, needs: frozenset[Summary]) -> Summaries:
        """Nothing: a schedule that asks is refused before."""
        raise UserError(f"a cached teacher has no {', '.join(sorted(needs))} for the temperature schedule")


class Moment(NamedTuple):
    """When a batch comes: optimiser steps taken, those that the run will take, and the key of its randomness."""

    step: int
    total_steps: int | None
    key: int


@dataclass(frozen=True)
class Tally:
    """Sums and counts over tokens, of all processes together and without a gradient; those of several batches add up.

    Attributes:
        sums_8: weighted loss and weights; loss of the kept tokens and how many; means of the rows' own losses and how
            many rows; acceptance at the (first) loss temperature and the draft's loss temperature, of the kept tokens.
    """

    sums_8: Tensor

    def __add__(self, other: "Tally") -> "Tally":
        """That of both batches."""
        return Tally(self.sums_8 + other.sums_8)

    def means(self) -> dict[str, Tensor]:
        """What a run logs, by name: the loss, and the other sums over their counts."""
        total, weight, token_loss, tokens, sequence_loss, rows, overlap, heat = self.sums_8
        weight, tokens, rows = or_one(weight), or_one(tokens), or_one(rows)
        return {
            "loss": total / weight,
            "token_loss": token_loss / tokens,
            "sequence_loss": sequence_loss / rows,
            "acceptance": overlap / tokens,
            "temperature": heat / tokens,
        }


class Report(NamedTuple):
    """What a batch came to.

    Attributes:
        loss: what this process minimises: its share of the mean loss, times the number of processes, since gradients
            are averaged over them. Processes with fewer tokens so count less.
        tally: what is logged.
    """

    loss: Tensor
    tally: Tally


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Plugins may make tensors without a dtype: under `bf16-true` the default is bfloat16, which has no 0.7."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@dataclass
class FitLoss:
    """The loss of a batch, from both models' outputs.

    Args:
        divergence: the distance between the laws.
        temperature: the loss temperatures.
        label_weight: share of the cross-entropy with the text's own tokens, at temperature 1.
        average: over all tokens alike, or over sequences whose own means count alike.
        fraction: the share of tokens that selection keeps.
    """

    divergence: Divergence
    temperature: TemperatureSchedule
    label_weight: float = 0.0
    average: Literal["token", "sequence"] = "token"
    fraction: float = 1.0

    @float32_by_default()
    def __call__(
        self,
        sides: Sides,
        batch: Batch,
        moment: Moment,
        reference: Sides | None = None,
        mean: Callable[[Tensor], Tensor] | None = None,
    ) -> Report:
        """The loss of a batch.

        Args:
            sides: both models' outputs at the positions that `response` keeps.
            batch: the batch, as the data module makes it.
            moment: when it comes.
            reference: the target's and the reference draft's outputs, for selection.
            mean: the mean of a vector over all processes; None where there is one.
        """
        keep_BT = response(batch)
        learned_BT = keep_BT if reference is None else self._selected(sides, reference, keep_BT)
        objective = self._objective(sides, batch, keep_BT, learned_BT, moment)
        result = sides.loss(objective)
        return self._report(result, objective, keep_BT, mean)

    @float32_by_default()
    def draft_temperature(self, batch: Batch, moment: Moment) -> Tensor:
        """The draft's loss temperature of each row, `[B]`, before any model has run: for a conditioned draft.

        Raises:
            UserError: the schedule looks at tokens, or gives more than one temperature to a row.
        """
        keep_BT = response(batch)
        none = Summaries(None, None, None, None)
        got = None if self.temperature.needs else self._scheduled(none, batch, keep_BT, moment)
        if got is None or got.weight_G is not None or (got.draft.ndim and got.draft.shape[1] != 1):
            raise UserError(
                "a conditioned draft expected one loss temperature for each row, got a schedule of another kind, "
                f"{type(self.temperature).__name__}: take one per batch or per sequence, such as Uniform"
            )
        return got.draft.detach().expand(len(keep_BT), 1)[:, 0]

    def _objective(self, sides: Sides, batch: Batch, keep_BT: Tensor, learned_BT: Tensor, moment: Moment) -> Objective:
        target_GN, draft_GN, share_G = self._temperatures(sides, batch, keep_BT, moment)
        label_1N = batch["input_ids"][:, 1:][keep_BT][None]
        context = LossContext(moment.step, moment.total_steps, label_1N)
        weight_N = self._weights(batch, learned_BT)[keep_BT]
        return Objective(self.divergence, target_GN, draft_GN, share_G, weight_N, context, self.label_weight)

    def _weights(self, batch: Batch, learned_BT: Tensor) -> Tensor:
        weight_BT = batch["weight"].float()[:, None] * learned_BT  # Lightning may have made it bfloat16
        return weight_BT if self.average == "token" else weight_BT / learned_BT.sum(1, keepdim=True).clamp(min=1)

    def _temperatures(
        self, sides: Sides, batch: Batch, keep_BT: Tensor, moment: Moment
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Target's and draft's loss temperatures at each kept token, `[G, N]` each, and their shares, `[G]`."""
        needs = self.temperature.needs
        found = sides.summaries(needs) if needs else Summaries(None, None, None, None)
        got = self._scheduled(found, batch, keep_BT, moment)
        share_G = torch.ones(1, dtype=torch.float32) if got.weight_G is None else got.weight_G
        target_GN, draft_GN = (
            side.to(keep_BT.device).expand(len(share_G), *keep_BT.shape)[:, keep_BT] for side in (got.target, got.draft)
        )
        return target_GN, draft_GN, share_G.to(keep_BT.device)

    def _scheduled(self, found: Summaries, batch: Batch, keep_BT: Tensor, moment: Moment) -> Temperatures:
        context = ScheduleContext(
            moment.step,
            moment.total_steps,
            len(keep_BT),
            torch.Generator().manual_seed(moment.key),
            generation_temperature(batch),
            keep_BT,
            *(None if value_N is None else _spread(value_N, keep_BT) for value_N in found),
        )
        return self.temperature(context)

    def _selected(self, sides: Sides, reference: Sides, keep_BT: Tensor) -> Tensor:
        """Which positions are learned: those where the draft loses most to the reference."""
        needs: frozenset[Summary] = frozenset({"loss"})
        own_N, best_N = sides.summaries(needs).loss_N, reference.summaries(needs).loss_N
        assert own_N is not None
        assert best_N is not None
        learned_N = torch.zeros_like(own_N, dtype=torch.bool)
        learned_N[(own_N - best_N).topk(math.ceil(len(own_N) * self.fraction)).indices] = True
        return _spread(learned_N, keep_BT, False)

    def _report(
        self, result: Result, objective: Objective, keep_BT: Tensor, mean: Callable[[Tensor], Tensor] | None
    ) -> Report:
        weight_N = objective.weight_N
        with torch.no_grad():
            kept_N = weight_N > 0
            token_loss, count = masked_sum_and_count(result.loss_N, kept_N)
            loss_BT, kept_BT = _spread(result.loss_N, keep_BT), _spread(kept_N, keep_BT, False)
            own_B = torch.where(kept_BT, loss_BT, 0.0).sum(1) / kept_BT.sum(1).clamp(min=1)
            overlap, _ = masked_sum_and_count(result.overlap_N, kept_N)
            mean_N = (objective.share_G[:, None] * objective.draft_GN).sum(0) / or_one(objective.share_G.sum())
            heat, _ = masked_sum_and_count(mean_N, kept_N)
            sums = [result.total.detach(), weight_N.sum(), token_loss, count, own_B.sum(), kept_BT.any(1).sum()]
            found = torch.stack([value.to(result.total.dtype) for value in (*sums, overlap, heat)])
            tally = Tally(found if mean is None else mean(found))
        return Report(result.total / or_one(tally.sums_8[1]), tally)


def response(batch: Batch) -> Tensor:
    """Which logits count, bool `[B, T-1]`: entry t predicts token t + 1."""
    return batch["loss_mask"][:, 1:] & (batch["weight"][:, None] > 0)


def generation_temperature(batch: Batch) -> Tensor:
    """The temperature that each row's text was sampled at, float32 `[B]`, NaN where unknown.

    A batch has it as integers with the same bits: Lightning rounds a batch's floats under `bf16-true`.
    """
    return batch["generation_temperature"].view(torch.float32)


def _spread(value_N: Tensor, keep_BT: Tensor, fill: float = torch.nan) -> Tensor:
    """Values of the kept positions back at their places, `[B, T]`."""
    return torch.full(keep_BT.shape, fill, dtype=value_N.dtype, device=keep_BT.device).masked_scatter(keep_BT, value_N)
