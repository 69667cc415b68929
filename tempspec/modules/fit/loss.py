"""What fit minimises on a batch: temperatures by a schedule, weights of tokens, and what is logged (floor 5).

It knows no model: both models' logits come as `tempspec.modules.outputs.LogitPairs`.

Axes: B batch, T positions, N the batch's response tokens, V vocabulary, G temperatures at once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tempspec.core.reduce import masked_sum_and_count, or_one
from tempspec.core.vocabulary import draft_ids
from tempspec.errors import UserError
from tempspec.interfaces import Divergence, LossContext, ScheduleContext, Summary, Temperatures, TemperatureSchedule
from tempspec.modules.fit.objective import Objective
from tempspec.modules.fit.summaries import Summaries, summaries
from tempspec.modules.head_steps import DraftStep, joined
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import Batch, LogitPairs, generation_temperature, response

__all__ = ["BatchLoss", "FitLoss", "LossSums", "Moment", "TokenSelection"]


@dataclass
class TokenSelection:
    """Learn only the tokens that the draft can still gain on: those where it loses most to a reference draft.

    Xiao et al. 2025 (AdaSPEC, arXiv 2510.19779).

    Args:
        reference: folder or hub name of the reference, a draft that was distilled on all tokens. A head's is a folder.
        fraction: the share of a batch's tokens that is kept, in (0, 1]; of a head at each of its steps.

    Raises:
        UserError: fraction is out of range.
    """

    reference: str
    fraction: float = 0.4

    def __post_init__(self) -> None:
        """Refuse to keep nothing."""
        if not 0 < self.fraction <= 1:
            raise UserError(f"selection.fraction must be in (0, 1], got {self.fraction}; the paper takes 0.4")


class Moment(NamedTuple):
    """When a batch comes: optimiser steps taken, those that the run will take, and the key of its randomness."""

    step: int
    total_steps: int | None
    key: int


@dataclass(frozen=True)
class LossSums:
    """Sums over tokens, of all processes together and without a gradient; those of several batches add up.

    Attributes:
        loss: the weighted loss.
        weight: the weights.
        token_loss: the loss of the kept tokens, each alike.
        tokens: how many those are.
        sequence_loss: the means of the rows' own losses.
        rows: how many rows have kept tokens.
        acceptance: the acceptance of the kept tokens at the (first) loss temperature.
        temperature: the draft's loss temperature at the kept tokens.
    """

    loss: Tensor
    weight: Tensor
    token_loss: Tensor
    tokens: Tensor
    sequence_loss: Tensor
    rows: Tensor
    acceptance: Tensor
    temperature: Tensor

    def __add__(self, other: "LossSums") -> "LossSums":
        """Those of both batches."""
        return LossSums(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))

    def over(self, mean: Callable[[Tensor], Tensor] | None) -> "LossSums":
        """The means over all processes, by one reduction of a vector; the same where there is one process."""
        return self if mean is None else LossSums(*mean(torch.stack(list(vars(self).values()))).unbind())

    def means(self) -> dict[str, Tensor]:
        """What a run logs, by name: the loss, and the other sums over their counts."""
        tokens = or_one(self.tokens)
        return {
            "loss": self.loss / or_one(self.weight),
            "token_loss": self.token_loss / tokens,
            "sequence_loss": self.sequence_loss / or_one(self.rows),
            "acceptance": self.acceptance / tokens,
            "temperature": self.temperature / tokens,
        }


class BatchLoss(NamedTuple):
    """What a batch came to.

    Attributes:
        loss: what this process minimises: its share of the mean loss, times the number of processes, since gradients
            are averaged over them. Processes with fewer tokens so count less.
        sums: what is logged, of each step.
    """

    loss: Tensor
    sums: list[LossSums]


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
        steps: Sequence[DraftStep],
        moment: Moment,
        reference: Sequence[LogitPairs] = (),
        mean: Callable[[Tensor], Tensor] | None = None,
    ) -> BatchLoss:
        """The loss of a batch: the mean over the tokens of all its steps, computed in one walk over them.

        Args:
            steps: the draft's steps on the batch; one of a language model.
            moment: when it comes.
            reference: the target's and the reference draft's logits at each step, for selection.
            mean: the mean of a vector over all processes; None where there is one.
        """
        objectives = [self._objective(*both, moment) for both in zip_longest(steps, reference)]
        result = Objective.joined(objectives).of(joined(steps))
        sizes = [len(objective.weight_N) for objective in objectives]
        tokens = zip(result.loss_N.split(sizes), result.overlap_N.split(sizes), strict=True)
        sums = [
            self._sums(*values, objective, step.kept).over(mean)
            for values, objective, step in zip(tokens, objectives, steps, strict=True)
        ]
        return BatchLoss(result.total / or_one(torch.stack([each.weight for each in sums]).sum()), sums)

    @float32_by_default()
    def draft_temperature(self, batch: Batch, moment: Moment) -> Tensor:
        """The draft's loss temperature of each row, `[B]`, before any model has run: for a conditioned draft.

        Raises:
            UserError: the schedule looks at tokens, or gives more than one temperature to a row.
        """
        kept = Kept.of(response(batch))
        none = Summaries()
        got = None if self.temperature.needs else self._scheduled(none, batch, kept, moment)
        if got is None or got.weight_G is not None or (got.draft.ndim and got.draft.shape[1] != 1):
            raise UserError(
                "a conditioned draft expected one loss temperature for each row, got a schedule of another kind, "
                f"{type(self.temperature).__name__}: take one per batch or per sequence, such as Uniform"
            )
        return got.draft.detach().expand(len(kept.mask_BT), 1)[:, 0]

    def _objective(self, step: DraftStep, reference: LogitPairs | None, moment: Moment) -> Objective:
        batch, pairs, kept = step
        learned_BT = kept.mask_BT if reference is None else self._selected(pairs, reference, kept)
        target_GN, draft_GN, share_G = self._temperatures(pairs, batch, kept, moment)
        label_1N = kept.values(batch["input_ids"][:, 1:])[None]
        label_1N = label_1N if pairs.ids_R is None else draft_ids(label_1N, pairs.ids_R)
        context = LossContext(moment.step, moment.total_steps, label_1N)
        weight_N = kept.values(self._weights(batch, learned_BT))
        whole = self.divergence, target_GN, draft_GN, share_G, weight_N, context, self.label_weight
        return Objective(*whole, pairs.ids_R, renormalised=self.infinite_at_zeros)

    @cached_property
    def infinite_at_zeros(self) -> bool:
        """Whether a draft with some of the ids learns the target's law over those alone, renormalised."""
        return self.divergence.infinite_at_zeros()

    def _weights(self, batch: Batch, learned_BT: Tensor) -> Tensor:
        weight_BT = batch["weight"].float()[:, None] * learned_BT  # Lightning may have made it bfloat16
        return weight_BT if self.average == "token" else weight_BT / learned_BT.sum(1, keepdim=True).clamp(min=1)

    def _temperatures(
        self, pairs: LogitPairs, batch: Batch, kept: Kept, moment: Moment
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Target's and draft's loss temperatures at each kept token, `[G, N]` each, and their shares, `[G]`."""
        needs = self.temperature.needs
        found = summaries(pairs, needs) if needs else Summaries()
        got = self._scheduled(found, batch, kept, moment)
        share_G = torch.ones(1, dtype=torch.float32) if got.weight_G is None else got.weight_G
        sides = [_sent(side, kept.mask_BT.device) for side in (got.target, got.draft)]
        target_GN, draft_GN = (kept.values(side.expand(len(share_G), *kept.mask_BT.shape)) for side in sides)
        return target_GN, draft_GN, _sent(share_G, kept.mask_BT.device)

    def _scheduled(self, found: Summaries, batch: Batch, kept: Kept, moment: Moment) -> Temperatures:
        context = ScheduleContext(
            moment.step,
            moment.total_steps,
            len(kept.mask_BT),
            torch.Generator().manual_seed(moment.key),
            generation_temperature(batch),
            kept.mask_BT,
            *(None if value_N is None else kept.spread(value_N) for value_N in found),
        )
        return self.temperature(context)

    def _selected(self, pairs: LogitPairs, reference: LogitPairs, kept: Kept) -> Tensor:
        """Which positions are learned: those where the draft loses most to the reference."""
        needs: frozenset[Summary] = frozenset({"loss"})
        own_N, best_N = summaries(pairs, needs).loss_N, summaries(reference, needs).loss_N
        assert own_N is not None
        assert best_N is not None
        learned_N = torch.zeros_like(own_N, dtype=torch.bool)
        learned_N[(own_N - best_N).topk(math.ceil(len(own_N) * self.fraction)).indices] = True
        return kept.spread(learned_N, False)

    @torch.no_grad()
    def _sums(self, loss_N: Tensor, overlap_N: Tensor, objective: Objective, kept: Kept) -> LossSums:
        weight_N = objective.weight_N
        kept_N = weight_N > 0
        loss, _ = masked_sum_and_count(loss_N, kept_N, weight_N)
        token_loss, count = masked_sum_and_count(loss_N, kept_N)
        loss_BT, kept_BT = kept.spread(loss_N), kept.spread(kept_N, False)
        own_B = torch.where(kept_BT, loss_BT, 0.0).sum(1) / kept_BT.sum(1).clamp(min=1)
        acceptance, _ = masked_sum_and_count(overlap_N, kept_N)
        mean_N = (objective.share_G[:, None] * objective.draft_GN).sum(0) / or_one(objective.share_G.sum())
        temperature, _ = masked_sum_and_count(mean_N, kept_N)
        found = (loss, weight_N.sum(), token_loss, count, own_B.sum(), kept_BT.any(1).sum(), acceptance, temperature)
        return LossSums(*(value.to(loss.dtype) for value in found))


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """A small tensor on its way to a device; the host does not wait until it is there."""
    return value.to(device, non_blocking=True)
