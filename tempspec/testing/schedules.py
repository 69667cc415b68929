"""The laws that every temperature schedule keeps (floor 3).

Axes: B batch, T positions, G several temperatures at once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tempspec.errors import UserError
from tempspec.interfaces import ScheduleContext, Temperatures, TemperatureSchedule
from tempspec.testing.errors import ConformanceError

__all__ = ["check_schedule"]

_TOTAL = 10
_POSITIONS = 5


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
        got = schedule(context)
        _check_temperatures(got, context, where)
        _check_bounds(schedule, got, context, where)
    _check_memory(schedule)
    _check_randomness(schedule)
    _check_endless(schedule)


def _contexts(total_steps: int | None = _TOTAL) -> Iterator[tuple[str, ScheduleContext]]:
    """Names and contexts: steps up to far beyond the end, batch sizes, with and without generation temperatures."""
    for step in (0, 1, _TOTAL - 1, _TOTAL, 7 * _TOTAL):
        for batch in (1, 3):
            for known in (None, torch.tensor([0.7, 0.0, 1.0][:batch], dtype=torch.float32)):
                where = f"step {step} of {total_steps}, batch of {batch}, generation temperatures {known}"
                generator = torch.Generator().manual_seed(step)
                keep_BT = torch.arange(_POSITIONS) > torch.arange(batch)[:, None]
                context = ScheduleContext(step, total_steps, batch, generator, known, keep_BT, *_summaries(keep_BT))
                yield where, context


def _summaries(keep_BT: Tensor) -> tuple[Tensor, ...]:
    """Entropy, loss and both peaks, ordinary ones and zeros; NaN where they mean nothing."""
    ordinary_BT = torch.arange(keep_BT.numel(), dtype=torch.float32).view(keep_BT.shape) % _POSITIONS
    return tuple(torch.where(keep_BT, scale * ordinary_BT, torch.nan) for scale in (0.5, 0.1, 4.0, 3.0))


def _check_temperatures(got: Temperatures, context: ScheduleContext, where: str) -> None:
    """Both sides broadcast to [B, T], or [G, B, T] where there are several; positive and finite where they count."""
    if not isinstance(got, Temperatures):
        raise ConformanceError("a schedule returns Temperatures", where, f"got {type(got).__name__}")
    for side, value in (("target", got.target), ("draft", got.draft)):
        here = f"{side} at {where}"
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ConformanceError("a temperature is a floating-point tensor", here, f"got {kind}")
        _check_shape(value, got.weight_G, context.batch_size, here)
        value = value.expand(*value.shape[:-2], context.batch_size, _POSITIONS)[..., context.keep_BT]
        if not bool((value.isfinite() & (value > 0)).all()):
            raise ConformanceError("a temperature is positive and finite", here, f"got {value.flatten().tolist()}")
    if got.weight_G is not None and not bool((got.weight_G.isfinite() & (got.weight_G >= 0)).all()):
        law = "the weights of several temperatures are finite and not negative"
        raise ConformanceError(law, where, f"got {got.weight_G.tolist()}")


def _check_shape(value: Tensor, weight_G: Tensor | None, batch: int, where: str) -> None:
    if weight_G is None:
        law, fine = "a temperature is a scalar, [B, 1] or [B, T]", ((), (batch, 1), (batch, _POSITIONS))
        if tuple(value.shape) not in fine:
            raise ConformanceError(law, where, f"got {list(value.shape)}, B = {batch}, T = {_POSITIONS}")
        return
    law, G = "several temperatures are [G, 1, 1], [G, B, 1] or [G, B, T], weights [G]", len(weight_G)
    if weight_G.ndim != 1 or tuple(value.shape) not in ((G, 1, 1), (G, batch, 1), (G, batch, _POSITIONS)):
        got = f"got {list(value.shape)} and weights {list(weight_G.shape)}, B = {batch}, T = {_POSITIONS}"
        raise ConformanceError(law, where, got)


def _check_bounds(schedule: TemperatureSchedule, got: Temperatures, context: ScheduleContext, where: str) -> None:
    """The draft's temperatures that weigh and count stay within the bounds of the run, where the schedule gives any."""
    bounds = schedule.bounds(context.total_steps)
    if bounds is None or context.step >= _TOTAL:
        return
    draft = got.draft if got.weight_G is None else got.draft[got.weight_G > 0]
    value = draft.expand(*draft.shape[:-2], context.batch_size, _POSITIONS)[..., context.keep_BT]
    (low, high), slack = bounds, 1 + 1e-5
    if not bool(((value * slack >= low) & (value <= high * slack)).all()):
        law, found = "the draft's temperatures of a run lie within the schedule's bounds", value.flatten().tolist()
        raise ConformanceError(law, where, f"got {found}, bounds {low} and {high}")


def _numbers(temperatures: Temperatures) -> list[float | str]:
    """Both sides as numbers; NaN, which equals nothing, as text."""
    both = temperatures.target.flatten().tolist() + temperatures.draft.flatten().tolist()
    return [number if number == number else "NaN" for number in both]


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
        _check_temperatures(got, context, where)
