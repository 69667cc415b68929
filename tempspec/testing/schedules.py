"""The laws that every temperature schedule keeps (floor 3).

Axes: B batch.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tempspec.errors import UserError
from tempspec.interfaces import ScheduleContext, Temperatures, TemperatureSchedule
from tempspec.testing.errors import ConformanceError

__all__ = ["check_schedule"]

_TOTAL = 10


def check_schedule(schedule: TemperatureSchedule) -> None:
    """Hold a schedule to every law of its family: from the first step to beyond the last, with and without an end.

    Args:
        schedule: an instance, as a configuration would make it.

    Raises:
        ConformanceError: a law fails; it says which, where and by how much.

    >>> from tempspec.plugins.schedules import Cosine
    >>> check_schedule(Cosine(start=2.0, end=1.0))
    """
    for where, context in _contexts():
        _check_temperatures(schedule(context), context.batch_size, where)
    _check_memory(schedule)
    _check_randomness(schedule)
    _check_endless(schedule)


def _contexts(total_steps: int | None = _TOTAL) -> Iterator[tuple[str, ScheduleContext]]:
    """Names and contexts: steps up to far beyond the end, batch sizes, with and without generation temperatures."""
    for step in (0, 1, _TOTAL - 1, _TOTAL, 7 * _TOTAL):
        for batch in (1, 3):
            for known in (None, torch.tensor([0.7, 1.5, 1.0][:batch])):
                where = f"step {step} of {total_steps}, batch of {batch}, generation temperatures {known}"
                generator = torch.Generator().manual_seed(step)
                yield where, ScheduleContext(step, total_steps, batch, generator, known)


def _check_temperatures(got: Temperatures, batch: int, where: str) -> None:
    """Both sides are given, in a shape that broadcasts to [B, T], positive and finite."""
    if not isinstance(got, Temperatures):
        raise ConformanceError("a schedule returns Temperatures", where, f"got {type(got).__name__}")
    for side, value in (("target", got.target), ("draft", got.draft)):
        here = f"{side} at {where}"
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ConformanceError("a temperature is a floating-point tensor", here, f"got {kind}")
        if value.shape not in ((), (batch, 1)):
            law = "a temperature is a scalar or [B, 1]"
            raise ConformanceError(law, here, f"got {list(value.shape)}, B = {batch}")
        if not bool((value.isfinite() & (value > 0)).all()):
            raise ConformanceError("a temperature is positive and finite", here, f"got {value.flatten().tolist()}")


def _numbers(temperatures: Temperatures) -> list[float]:
    """Both sides as numbers."""
    return temperatures.target.flatten().tolist() + temperatures.draft.flatten().tolist()


def _check_memory(schedule: TemperatureSchedule) -> None:
    """The same context gives the same temperatures in any order of calls: what a resumed run relies on."""
    forward = [_numbers(schedule(context)) for _, context in _contexts()]
    backward = [_numbers(schedule(context)) for _, context in reversed(list(_contexts()))]
    for (where, _), first, second in zip(_contexts(), forward, reversed(backward), strict=True):
        if first != second:
            law = "equal steps and equal generator states give equal temperatures, in any order of calls"
            raise ConformanceError(law, where, f"got {first}, then {second}")


def _check_randomness(schedule: TemperatureSchedule) -> None:
    """The only randomness is the context's generator."""
    for where, context in _contexts():
        before = torch.get_rng_state()
        schedule(context)
        if not torch.equal(before, torch.get_rng_state()):
            raise ConformanceError("torch's global generator is left alone", where, "its state changed")


def _check_endless(schedule: TemperatureSchedule) -> None:
    """A run without an end gets temperatures, or a UserError that says what is missing."""
    for where, context in _contexts(total_steps=None):
        try:
            got = schedule(context)
        except UserError:
            continue
        except Exception as error:
            law = "a run without a number of steps gets temperatures or a UserError"
            raise ConformanceError(law, where, f"{type(error).__name__}: {error}") from error
        _check_temperatures(got, context.batch_size, where)
