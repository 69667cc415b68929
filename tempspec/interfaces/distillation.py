"""What distillation asks of its plugins: a divergence and a temperature schedule (floor 2).

p is the target's law and q the draft's. Axes: B batch, V vocabulary, T positions, G temperatures at once.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Kept = Literal["top", "sampled"]
"""What a cached teacher keeps of every law: its largest logits, or samples."""


@dataclass(frozen=True, slots=True)
class LossContext:
    """What a divergence may look at besides the two laws.

    Attributes:
        step: optimiser steps taken so far, from 0.
        total_steps: the optimiser steps that the run will take, or None when unknown.
        label_BT: the token that the text itself has at each position, int64 `[B, T]`, or None.
    """

    step: int = 0
    total_steps: int | None = None
    label_BT: Tensor | None = None


class Divergence(ABC):
    """A distance between the target's and the draft's law at every position: what distillation minimises.

    A subclass implements `per_position`, and `in_context` too where it needs the step or the labels; callers call the
    instance, which applies the temperature factor. One that keeps a state of its own is a `torch.nn.Module` as well,
    best an `Exact` one: then its buffers are saved with the run.

    Args:
        scale: `none` leaves the value as it is; `gradient` multiplies it by `temperature ** gradient_order`, which
            keeps the size of the gradient with respect to the logits when the temperature changes (Hinton et al. 2015).
    """

    gradient_order: ClassVar[int] = 2
    """The power of T that keeps the gradient's scale: 2 for the KL family, 1 for total variation."""
    source: ClassVar[str] = ""
    """The paper that the divergence comes from."""
    formula: ClassVar[str] = ""
    """What it computes at a position, on one line."""
    cached: frozenset[Kept] = frozenset()
    """The cached teachers that it can learn from: `top` if laws with the tail in one cell make sense to it, `sampled`
    if it is a sum over tokens of p f(q / p), which samples estimate without bias."""

    def __init__(self, scale: Literal["none", "gradient"] = "none") -> None:
        self.scale = scale

    @abstractmethod
    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """The divergence in nats, `[B, T]`, from log-laws `[B, T, V]`; p and q may hold zeros (-inf)."""

    def in_context(self, logp_BTV: Tensor, logq_BTV: Tensor, context: LossContext) -> Tensor:
        """As `per_position`, for a divergence that depends on the step or the labels."""
        return self.per_position(logp_BTV, logq_BTV)

    def observe(self, loss: Tensor, context: LossContext) -> None:  # noqa: B027 - most have nothing to remember
        """Take note of a batch's mean loss, the same on every rank; for divergences that adapt."""

    @torch.no_grad()
    def infinite_at_zeros(self) -> bool:
        """Whether it is infinite where the draft has no mass and the target has: tried, at the first and the last step.

        Of such a divergence a draft that knows some tokens alone learns the target's law restricted to these.
        """
        logp_11V = torch.tensor([[[0.25, 0.75]]], dtype=torch.float32).log()
        logq_11V = torch.tensor([[[1.0, 0.0]]], dtype=torch.float32).log()
        label_11 = torch.ones(1, 1, dtype=torch.int64)
        contexts = [LossContext(step, 1, label_11) for step in (0, 1)]
        return any(not bool(self(logp_11V, logq_11V, 1.0, context).isfinite()) for context in contexts)

    def __call__(
        self,
        logp_BTV: Tensor,
        logq_BTV: Tensor,
        temperature: Tensor | float = 1.0,
        context: LossContext | None = None,
    ) -> Tensor:
        """The divergence `[B, T]` with its temperature factor.

        Args:
            logp_BTV: the target's log-law, no gradient needed.
            logq_BTV: the draft's log-law.
            temperature: the draft's loss temperature, a number or a tensor that broadcasts to `[B, T]`.
            context: the step and the labels; by default the first step, without labels.
        """
        value = self.in_context(logp_BTV, logq_BTV, LossContext() if context is None else context)
        return value * temperature**self.gradient_order if self.scale == "gradient" else value


Summary = Literal["entropy", "loss", "peaks"]
"""What a schedule may ask about the two models' laws before it chooses temperatures."""


@dataclass(frozen=True, slots=True)
class ScheduleContext:
    """What a temperature schedule may look at. Laws are those at temperature 1.

    Attributes:
        step: optimiser steps taken so far, from 0.
        total_steps: the optimiser steps that the run will take, or None when unknown.
        batch_size: B.
        generator: the generator for random schedules, seeded by the run's seed, the step and the batch's place in it.
        generation_temperature_B: the temperature that each row's text was sampled at, `[B]`, NaN where unknown.
        keep_BT: which positions count in the loss, bool `[B, T]`, or None when the caller has no positions.
        entropy_BT: the target's entropy in nats, `[B, T]`; only for a schedule that asks for "entropy".
        loss_BT: forward KL in nats, `[B, T]`; only for one that asks for "loss".
        peak_p_BT: the target's largest logit less its mean, `[B, T]`; only for one that asks for "peaks".
        peak_q_BT: the draft's, likewise.

    Summaries mean nothing outside `keep_BT`.
    """

    step: int
    total_steps: int | None
    batch_size: int
    generator: torch.Generator
    generation_temperature_B: Tensor | None = None
    keep_BT: Tensor | None = None
    entropy_BT: Tensor | None = None
    loss_BT: Tensor | None = None
    peak_p_BT: Tensor | None = None
    peak_q_BT: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Temperatures:
    """The loss temperatures of one batch: each a scalar tensor, `[B, 1]`, or `[B, T]`; all positive.

    Several at once: with `weight_G` both sides have a leading axis, `[G, 1, 1]`, `[G, B, 1]` or `[G, B, T]`, and the
    loss is the weighted sum over it.

    Attributes:
        target: the target's.
        draft: the draft's.
        weight_G: the weight of each of several temperatures, `[G]`, non-negative; None for a single one.
    """

    target: Tensor
    draft: Tensor
    weight_G: Tensor | None = None


class TemperatureSchedule(ABC):
    """The loss temperature as a function of the optimiser step and the batch.

    A schedule with learned parameters is a `torch.nn.Module` as well, best an `Exact` one: fit trains and saves them
    with the draft.
    """

    source: ClassVar[str] = ""
    """The paper that the schedule comes from."""
    formula: ClassVar[str] = ""
    """The target's temperature, on one line."""
    needs: frozenset[Summary] = frozenset()
    """The summaries that the context must carry; each costs a pass over both models' logits."""

    @abstractmethod
    def __call__(self, context: ScheduleContext) -> Temperatures:
        """The temperatures of this batch."""

    def bounds(self, total_steps: int | None) -> tuple[float, float] | None:
        """The draft's least and largest temperature of a run; None where the text, the laws or what is learned decides.

        Args:
            total_steps: the optimiser steps that the run will take, or None when unknown.
        """
        return None
