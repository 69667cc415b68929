"""The built-in temperature schedules: functions of `tempspec.core.schedules` plus remembered options (floor 3).

Axes: B batch.
"""

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from tempspec.core import schedules as core
from tempspec.errors import UserError
from tempspec.interfaces import ScheduleContext, Temperatures, TemperatureSchedule

__all__ = ["Constant", "Cosine", "Exponential", "Linear", "Piecewise", "Uniform"]


class Constant(TemperatureSchedule):
    """One loss temperature for the whole run.

    Args:
        temperature: the loss temperature, above 0.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: an argument is not positive.
    """

    def __init__(self, temperature: float = 1.0, draft_scale: float = 1.0) -> None:
        self.temperature = _positive("temperature", temperature)
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """The temperature, as scalars."""
        return _temperatures(self.temperature, self.draft_scale)


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
        return _temperatures(self._value(context.step, self._length(context)), self.draft_scale)

    @abstractmethod
    def _value(self, step: int, steps: int) -> float:
        """The temperature after `step` of `steps`."""

    def _length(self, context: ScheduleContext) -> int:
        """The schedule's own number of steps, or else the run's."""
        if self.steps is not None:
            return self.steps
        if context.total_steps is None:
            raise UserError(
                "expected the run's number of steps to spread the temperature schedule over, got a run without an end: "
                "give the schedule `steps`, or the trainer `max_steps` or `max_epochs`"
            )
        return max(context.total_steps, 1)


class Linear(_Ramp):
    """A straight line from one temperature to another, over `steps` or the whole run."""

    def _value(self, step: int, steps: int) -> float:
        return core.linear(step, start=self.start, end=self.end, steps=steps)


class Cosine(_Ramp):
    """Half a cosine from one temperature to another, flat at both ends."""

    def _value(self, step: int, steps: int) -> float:
        return core.cosine(step, start=self.start, end=self.end, steps=steps)


class Exponential(_Ramp):
    """A geometric path from one temperature to another: every step multiplies by the same factor."""

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

    def __init__(self, boundaries: list[int], temperatures: list[float], draft_scale: float = 1.0) -> None:
        if any(late <= early for early, late in zip([0, *boundaries], boundaries, strict=False)):
            raise ValueError(f"boundaries must increase from above 0, got {boundaries}: list each step once, in order")
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


class Uniform(TemperatureSchedule):
    """A temperature drawn anew for every batch or every sequence, evenly from a range.

    Args:
        low: the lowest temperature, above 0.
        high: the highest temperature, at least `low`.
        per: `batch` draws one for the batch, `sequence` one for each row.
        draft_scale: the draft's temperature is this times the target's.

    Raises:
        ValueError: an argument is not positive, or the range is empty.
    """

    def __init__(
        self, low: float, high: float, per: Literal["batch", "sequence"] = "batch", draft_scale: float = 1.0
    ) -> None:
        self.low = _positive("low", low)
        self.high = _positive("high", high)
        if high < low:
            raise ValueError(f"high must be at least low = {low}, got {high}: exchange the two")
        self.per = per
        self.draft_scale = _positive("draft_scale", draft_scale)

    def __call__(self, context: ScheduleContext) -> Temperatures:
        """A scalar, or `[B, 1]`, from the context's generator."""
        shape = (context.batch_size, 1) if self.per == "sequence" else ()
        share = torch.rand(shape, generator=context.generator, device=context.generator.device)
        return _temperatures(self.low + (self.high - self.low) * share, self.draft_scale)


def _temperatures(target: float | Tensor, draft_scale: float) -> Temperatures:
    """The pair, the draft's being a multiple of the target's."""
    target = torch.as_tensor(target, dtype=torch.float32)
    return Temperatures(target=target, draft=target * draft_scale)


def _positive(name: str, value: float) -> float:
    """A temperature or a factor of one, refused unless above 0 and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {value}: 1 leaves the model's own law unchanged")
    return float(value)


def _at_least_one(name: str, value: int) -> int:
    """A count, refused below 1."""
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value}: leave it out to take the whole run")
    return value
