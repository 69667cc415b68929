"""The built-in temperature schedules: functions of `tempspec.core.schedules` plus remembered options (floor 3).

Axes: B batch, T positions, G several temperatures at once.
"""

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tempspec.core import schedules as core
from tempspec.errors import UserError
from tempspec.interfaces import Exact, ScheduleContext, Summary, Temperatures, TemperatureSchedule

__all__ = [
    "Constant",
    "Cosine",
    "Curriculum",
    "Exponential",
    "Grid",
    "Join",
    "Linear",
    "LogitPeaks",
    "Matched",
    "Piecewise",
    "TeacherEntropy",
    "TokenDifficulty",
    "Uniform",
]


class Constant(TemperatureSchedule):
    """One loss temperature for the whole run.

    Args:
        temperature: the loss temperature, above 0.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: an argument is not positive.
    """

    formula = "T = temperature"

    def __init__(self, temperature: float = 1.0, draft_scale: float = 1.0) -> None:
        self.temperature = _positive("temperature", temperature)
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """The temperature, as scalars."""
        return _temperatures(self.temperature, self.draft_scale)

    def bounds(self, total_steps: int | None) -> tuple[float, float]:
        """The temperature, twice."""
        return _bounds([self.temperature], self.draft_scale)


class _Ramp(TemperatureSchedule):
    """A way from one temperature to another in a number of steps.

    Args:
        start: the temperature at the first step, above 0.
        end: the temperature at `steps` and after it, above 0.
        steps: the optimiser steps that the way takes; null takes the whole run.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: an argument is not positive.
    """

    def __init__(self, start: float, end: float, steps: int | None = None, draft_scale: float = 1.0) -> None:
        self.start = _positive("start", start)
        self.end = _positive("end", end)
        self.steps = steps if steps is None else _at_least_one("steps", steps)
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """The temperature on the way, as scalars.

        Raises:
            UserError: neither the schedule nor the run has a number of steps.
        """
        return _temperatures(self._value(context.step, _steps(self.steps, context)), self.draft_scale)

    def bounds(self, total_steps: int | None) -> tuple[float, float]:
        """Where the way begins and where it ends within the run."""
        last = self.end if self.steps is None or total_steps is None else self._value(total_steps, self.steps)
        return _bounds([self.start, last], self.draft_scale)

    @abstractmethod
    def _value(self, step: int, steps: int) -> float:
        """The temperature after `step` of `steps`."""


class Linear(_Ramp):
    """A straight line from one temperature to another, over `steps` or the whole run."""

    formula = "T = start + (end - start) step / steps"

    def _value(self, step: int, steps: int) -> float:
        return core.linear(step, start=self.start, end=self.end, steps=steps)


class Cosine(_Ramp):
    """Half a cosine from one temperature to another, flat at both ends."""

    source = "Loshchilov and Hutter 2017, SGDR (arXiv 1608.03983), for learning rates"
    formula = "T = end + (start - end) (1 + cos(pi step / steps)) / 2"

    def _value(self, step: int, steps: int) -> float:
        return core.cosine(step, start=self.start, end=self.end, steps=steps)


class Exponential(_Ramp):
    """A geometric path from one temperature to another: every step multiplies by the same factor."""

    formula = "T = start (end / start)^(step / steps)"

    def _value(self, step: int, steps: int) -> float:
        return core.exponential(step, start=self.start, end=self.end, steps=steps)


class Piecewise(TemperatureSchedule):
    """Constant temperatures that change at given steps.

    Args:
        boundaries: the optimiser steps at which the next temperature begins, above 0 and increasing.
        temperatures: one more than the boundaries, each above 0.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: the boundaries do not increase, the lengths do not fit, or a temperature is not positive.
    """

    formula = "T = temperatures[i] from step boundaries[i - 1] on"

    def __init__(self, boundaries: list[int], temperatures: list[float], draft_scale: float = 1.0) -> None:
        _increasing(boundaries)
        if len(temperatures) != len(boundaries) + 1:
            raise ValueError(
                f"temperatures must be one more than the {len(boundaries)} boundaries, got {len(temperatures)}: "
                "the first holds before the first boundary, each other from its boundary on"
            )
        self.boundaries = list(boundaries)
        self.temperatures = [_positive("each of temperatures", temperature) for temperature in temperatures]
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """See `tempspec.core.schedules.piecewise`."""
        value = core.piecewise(context.step, boundaries=self.boundaries, values=self.temperatures)
        return _temperatures(value, self.draft_scale)

    def bounds(self, total_steps: int | None) -> tuple[float, float]:
        """Over the temperatures whose turn comes."""
        turns = zip([0, *self.boundaries], self.temperatures, strict=True)
        return _bounds([value for start, value in turns if _comes(start, total_steps)], self.draft_scale)


class Uniform(TemperatureSchedule):
    """A temperature drawn anew for every batch, sequence or token, evenly from a range.

    Args:
        low: the lowest temperature, above 0.
        high: the highest temperature, at least `low`.
        per: `batch` draws one for the batch, `sequence` one for each row, `token` one for each position.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: an argument is not positive, or the range is empty.
    """

    formula = "T ~ U(low, high)"

    def __init__(
        self, low: float, high: float, per: Literal["batch", "sequence", "token"] = "batch", draft_scale: float = 1.0
    ) -> None:
        self.low = _positive("low", low)
        self.high = _positive("high", high)
        if high < low:
            raise ValueError(f"high must be at least low = {low}, got {high}: exchange the two")
        self.per = per
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """A scalar, `[B, 1]` or `[B, T]`, from the context's generator.

        Raises:
            UserError: the caller of a schedule per token has no positions.
        """
        shape = {
            "batch": lambda: (),
            "sequence": lambda: (context.batch_size, 1),
            "token": lambda: _known(context.keep_BT, "keep_BT").shape,
        }[self.per]()
        share = torch.rand(shape, generator=context.generator, dtype=torch.float32, device=context.generator.device)
        return _temperatures(self.low + (self.high - self.low) * share, self.draft_scale)

    def bounds(self, total_steps: int | None) -> tuple[float, float]:
        """The range."""
        return _bounds([self.low, self.high], self.draft_scale)


class Grid(TemperatureSchedule):
    """Several temperatures at once: one forward of each model, and the weighted sum of the losses.

    Args:
        temperatures: the loss temperatures, at least one, each above 0.
        weights: the weight of each, 0 or more, scaled to sum to 1; equal ones by default.
        draft_scale: the draft's temperatures are this times the target's.

    Raises:
        ValueError: no temperature, or one that is not positive; weights that do not fit.
    """

    formula = "L = the sum of weights[i] L at temperatures[i]"

    def __init__(self, temperatures: list[float], weights: list[float] | None = None, draft_scale: float = 1.0) -> None:
        if not temperatures:
            raise ValueError("temperatures must be at least one, got none: 0.5, 1, 1.5 and 2 cover common decoding")
        self.temperatures = [_positive("each of temperatures", temperature) for temperature in temperatures]
        weights = [1.0] * len(temperatures) if weights is None else weights
        if len(weights) != len(temperatures) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise ValueError(
                f"weights must be {len(temperatures)} numbers of 0 or more, not all 0, got {weights}: "
                "one for each temperature"
            )
        self.weights = [weight / sum(weights) for weight in weights]
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """All temperatures, `[G, 1, 1]`."""
        one = _temperatures(torch.tensor(self.temperatures, dtype=torch.float32)[:, None, None], self.draft_scale)
        return replace(one, weight_G=torch.tensor(self.weights, dtype=torch.float32))

    def bounds(self, total_steps: int | None) -> tuple[float, float]:
        """Over all temperatures that have a weight."""
        weighed = [value for value, weight in zip(self.temperatures, self.weights, strict=True) if weight]
        return _bounds(weighed, self.draft_scale)


class Matched(TemperatureSchedule):
    """Each row at the temperature that its text was sampled at.

    Args:
        unknown: the temperature of rows that do not say, above 0; null refuses them.
        low: the least temperature, above 0: rows that were sampled by argmax get this one.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: an argument is not positive.
    """

    formula = "T = max(low, the temperature that the row was sampled at)"

    def __init__(self, unknown: float | None = None, low: float = 0.1, draft_scale: float = 1.0) -> None:
        self.unknown = None if unknown is None else _positive("unknown", unknown)
        self.low = _positive("low", low)
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """The rows' temperatures, `[B, 1]`.

        Raises:
            UserError: a row does not say, and `unknown` is not set.
        """
        own_B = context.generation_temperature_B
        if own_B is None:
            own_B = torch.full((context.batch_size,), torch.nan, dtype=torch.float32)
        if self.unknown is None and bool(own_B.isnan().any()):
            raise UserError(
                "Matched expected rows that carry their generation temperature, got rows without one: train on what "
                "`tempspec generate` wrote, or give the schedule `unknown`"
            )
        own_B = torch.where(own_B.isnan(), 1.0 if self.unknown is None else self.unknown, own_B).clamp(min=self.low)
        return _temperatures(own_B[:, None], self.draft_scale)


class Join(TemperatureSchedule, torch.nn.Module):
    """One schedule after another; each counts its steps from its own beginning. What they learn is trained and saved.

    Args:
        schedules: the schedules in their order.
        boundaries: the optimiser steps at which the next schedule begins, one less than the schedules.

    Raises:
        ValueError: the boundaries do not increase, or the lengths do not fit.
    """

    formula = "T = that of schedules[i] at step - boundaries[i - 1]"

    def __init__(self, schedules: list[TemperatureSchedule], boundaries: list[int]) -> None:
        super().__init__()
        _increasing(boundaries)
        if len(schedules) != len(boundaries) + 1:
            raise ValueError(
                f"schedules must be one more than the {len(boundaries)} boundaries, got {len(schedules)}: "
                "the first holds before the first boundary, each other from its boundary on"
            )
        self.schedules, self.boundaries = list(schedules), list(boundaries)
        self.needs: frozenset[Summary] = frozenset().union(*(schedule.needs for schedule in schedules))
        for index, schedule in enumerate(schedules):
            if isinstance(schedule, torch.nn.Module):
                self.add_module(f"schedule_{index}", schedule)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """The temperatures of the schedule whose turn it is."""
        starts, ends = [0, *self.boundaries], [*self.boundaries, context.total_steps]
        index = core.piecewise(context.step, boundaries=self.boundaries, values=list(range(len(starts))))
        start, end = starts[int(index)], ends[int(index)]
        own = replace(context, step=context.step - start, total_steps=None if end is None else end - start)
        got = self.schedules[int(index)](own)
        # A gradient of 0 for the others' parameters: DDP waits for one from each.
        zero = sum(
            (0 * parameter.sum().to(got.target.device) for parameter in self.parameters()),
            torch.zeros((), dtype=torch.float32),
        )
        return replace(got, target=got.target + zero, draft=got.draft + zero)

    def bounds(self, total_steps: int | None) -> tuple[float, float] | None:
        """Over the schedules whose turn comes; None where one of them has none."""
        turns = zip(self.schedules, [0, *self.boundaries], [*self.boundaries, total_steps], strict=True)
        found = [
            schedule.bounds(None if end is None else end - start)
            for schedule, start, end in turns
            if _comes(start, total_steps)
        ]
        known = [one for one in found if one is not None]
        return _bounds([value for one in known for value in one]) if len(known) == len(found) else None


class TeacherEntropy(TemperatureSchedule):
    """The temperature follows the target's entropy, token by token.

    Args:
        low: the temperature where the target is certain, above 0.
        high: the limit where it is not, above 0; below `low` the temperature falls with the entropy.
        half: the entropy in nats half-way between, above 0.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: an argument is not positive.
    """

    formula = "T = low + (high - low) H(p) / (H(p) + half)"
    needs: frozenset[Summary] = frozenset({"entropy"})

    def __init__(self, low: float = 0.5, high: float = 2.0, half: float = 1.0, draft_scale: float = 1.0) -> None:
        self.low, self.high = _positive("low", low), _positive("high", high)
        self.half = _positive("half", half)
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """See `tempspec.core.schedules.by_entropy`; `[B, T]`."""
        entropy_BT = _known(context.entropy_BT, "entropy_BT")
        return _temperatures(
            core.by_entropy(entropy_BT, low=self.low, high=self.high, half=self.half), self.draft_scale
        )


class TokenDifficulty(TemperatureSchedule):
    """Cold on tokens that the draft finds hard and hot on easy ones, by their loss against the batch's median.

    Args:
        base: the temperature at the median, above 0.
        strength: temperatures stay within base times exp of plus or minus this; below 0 hard tokens are hot.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: base or draft_scale is not positive, or strength is not finite.
    """

    source = "Xie et al. 2025, AdaKD (arXiv 2510.11615)"
    formula = "T = base exp(-strength tanh(log(KL / median KL)))"
    needs: frozenset[Summary] = frozenset({"loss"})

    def __init__(self, base: float = 1.0, strength: float = 0.5, draft_scale: float = 1.0) -> None:
        self.base = _positive("base", base)
        if not abs(strength) < float("inf"):
            raise ValueError(f"strength must be finite, got {strength}: the paper takes 0.3 to 0.6")
        self.strength = strength
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """See `tempspec.core.schedules.by_difficulty`; `[B, T]`, by the median of this process' batch."""
        loss_BT, keep_BT = _known(context.loss_BT, "loss_BT"), _known(context.keep_BT, "keep_BT")
        kept_N = loss_BT[keep_BT]
        median = kept_N.median() if len(kept_N) else torch.ones((), dtype=torch.float32)
        scaled_BT = core.by_difficulty(loss_BT, median, base=self.base, strength=self.strength)
        return _temperatures(torch.where(keep_BT, scaled_BT, self.base), self.draft_scale)


class LogitPeaks(TemperatureSchedule):
    """DTKD: target and draft each at a temperature in proportion to its largest logit, so that both are as sharp.

    The draft that it gives is not calibrated: fit its decoding temperature afterwards.

    Args:
        base: the mean of both temperatures, above 0.

    Raises:
        ValueError: base is not positive.
    """

    source = "Wei and Bai 2024, Dynamic Temperature Knowledge Distillation (DTKD, arXiv 2404.12711)"
    formula = "T_p = 2 base z_p / (z_p + z_q) and T_q = 2 base z_q / (z_p + z_q)"
    needs: frozenset[Summary] = frozenset({"peaks"})

    def __init__(self, base: float = 1.0) -> None:
        self.base = _positive("base", base)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """See `tempspec.core.schedules.by_peaks`; `[B, T]`."""
        peaks = _known(context.peak_p_BT, "peak_p_BT"), _known(context.peak_q_BT, "peak_q_BT")
        return Temperatures(*core.by_peaks(*peaks, base=self.base))


class Curriculum(TemperatureSchedule, Exact):
    """CTKD: one learned temperature that climbs the loss while the draft descends it, ever more strongly.

    Args:
        start: the temperature at the first step, strictly between `low` and `low + span`.
        low: the least temperature, above 0.
        span: how far above `low` it may go, above 0.
        steps: the optimiser steps until the reversed gradient has its full weight; null takes the whole run.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: an argument is out of its range.
    """

    source = "Li et al. 2023, Curriculum Temperature for Knowledge Distillation (CTKD, arXiv 2211.16231)"
    formula = "T = low + span sigmoid(theta), with theta learned against the loss"

    def __init__(
        self,
        start: float = 2.0,
        low: float = 1.0,
        span: float = 20.0,
        steps: int | None = None,
        draft_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.low, self.span = _positive("low", low), _positive("span", span)
        if not low < start < low + span:
            raise ValueError(f"start must be between low = {low} and low + span = {low + span}, got {start}")
        share = (start - low) / span
        self.theta = torch.nn.Parameter(torch.tensor(math.log(share / (1 - share)), dtype=torch.float32))
        self.steps = steps if steps is None else _at_least_one("steps", steps)
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """The learned temperature, as scalars, with its gradient reversed."""
        steps = _steps(self.steps, context)
        weight = core.cosine(context.step, start=0.0, end=1.0, steps=steps)
        learned = self.low + self.span * self.theta.sigmoid()
        return _temperatures(core.reversed_gradient(learned, weight), self.draft_scale)


def _temperatures(target: float | Tensor, draft_scale: float) -> Temperatures:
    """The pair, the draft's being a multiple of the target's."""
    target = torch.as_tensor(target, dtype=torch.float32)
    return Temperatures(target=target, draft=target * draft_scale)


def _bounds(targets: list[float], draft_scale: float = 1.0) -> tuple[float, float]:
    """The least and the largest draft's temperature."""
    return min(targets) * draft_scale, max(targets) * draft_scale


def _comes(start: int, total_steps: int | None) -> bool:
    """Whether a run reaches what begins at a step."""
    return start == 0 or total_steps is None or start < total_steps


def _steps(own: int | None, context: ScheduleContext) -> int:
    """The schedule's own number of steps, or else the run's."""
    if own is not None:
        return own
    if context.total_steps is None:
        raise UserError(
            "expected the run's number of steps to spread the temperature schedule over, got a run without an end: "
            "give the schedule `steps`, or the trainer `max_steps` or `max_epochs`"
        )
    return max(context.total_steps, 1)


def _known(value: Tensor | None, name: str) -> Tensor:
    """A part of the context, refused where the caller left it out."""
    if value is None:
        raise UserError(f"the temperature schedule expected a context with {name}, got none: list it in `needs`")
    return value


def _increasing(boundaries: list[int]) -> None:
    """Steps, refused unless they increase from above 0."""
    if any(late <= early for early, late in zip([0, *boundaries], boundaries, strict=False)):
        raise ValueError(f"boundaries must increase from above 0, got {boundaries}: list each step once, in order")


def _positive(name: str, value: float) -> float:
    """A temperature or a factor of one, refused unless above 0 and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {value}: 1 changes nothing")
    return float(value)


def _at_least_one(name: str, value: int) -> int:
    """A count, refused below 1."""
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value}: leave it out to take the whole run")
    return value
