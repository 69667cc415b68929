"""Negative controls: each law of the kit catches a schedule that breaks it, and names it."""

import random
from types import SimpleNamespace

import pytest
import torch

from tempspec.interfaces import Temperatures, TemperatureSchedule
from tempspec.testing import ConformanceError, check_schedule


class Wrapped(TemperatureSchedule):
    """Gives both sides what a function of the context returns."""

    def __init__(self, function, draft=None):
        self.function, self.draft = function, draft or function

    def __call__(self, context):
        return Temperatures(self.function(context), self.draft(context))


class Returning(TemperatureSchedule):
    def __init__(self, value):
        self.value = value

    def __call__(self, context):
        return self.value


class Counting(TemperatureSchedule):
    """Counts its own calls instead of reading the step."""

    calls = 0

    def __call__(self, context):
        self.calls += 1
        return Temperatures(torch.tensor(1.0 + self.calls), torch.tensor(1.0))


def one(context):
    return torch.tensor(1.0)


CONTROLS = {
    "zero": (lambda c: torch.tensor(0.0), "positive and finite"),
    "negative at the end": (lambda c: torch.tensor(2.0 - 0.2 * c.step), "positive and finite"),
    "infinite": (lambda c: torch.tensor(torch.inf), "positive and finite"),
    "NaN where unknown": (lambda c: torch.full((c.batch_size, 1), torch.nan), "positive and finite"),
    "number": (lambda c: 1.0, "a temperature is a floating-point tensor"),
    "integer": (lambda c: torch.tensor(1), "a temperature is a floating-point tensor"),
    "row": (lambda c: torch.ones(c.batch_size), r"a scalar, \[B, 1\] or \[B, T\]"),
    "transposed": (lambda c: torch.ones(1, c.batch_size), r"a scalar, \[B, 1\] or \[B, T\]"),
    "one too many": (lambda c: torch.ones(c.batch_size + 1, 1), r"a scalar, \[B, 1\] or \[B, T\]"),
    "torch's generator": (lambda c: 1 + torch.rand(()), "equal generator states give equal|global generator"),
    "Python's generator": (lambda c: torch.tensor(1 + random.random()), "equal generator states give equal"),
    "drawn and not used": (lambda c: torch.rand(()) * 0 + 1, "torch's global generator is left alone"),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_broken_law_is_caught_and_named(name):
    function, law = CONTROLS[name]
    with pytest.raises(ConformanceError, match=law):
        check_schedule(Wrapped(function))


@pytest.mark.parametrize(
    ("shape", "weights", "law"),
    [
        ((2,), torch.ones(2), r"several temperatures are \[G, 1, 1\]"),
        ((2, 1, 1), torch.ones(3), r"several temperatures are \[G, 1, 1\]"),
        ((2, 1, 1), torch.tensor([1.0, -1.0]), "weights of several temperatures are finite and not negative"),
    ],
)
def test_several_temperatures_are_checked(shape, weights, law):
    with pytest.raises(ConformanceError, match=law):
        check_schedule(Returning(Temperatures(torch.ones(shape), torch.ones(shape), weights)))


def test_both_sides_are_checked():
    with pytest.raises(ConformanceError, match="positive and finite: failed at draft at step 0"):
        check_schedule(Wrapped(one, draft=lambda c: torch.tensor(-1.0)))


@pytest.mark.parametrize("value", [None, torch.tensor(1.0), SimpleNamespace(target=one(None), draft=one(None))])
def test_what_is_returned_must_be_temperatures(value):
    with pytest.raises(ConformanceError, match="a schedule returns Temperatures"):
        check_schedule(Returning(value))


def test_a_schedule_that_counts_its_calls_cannot_be_resumed():
    with pytest.raises(ConformanceError, match="in any order of calls"):
        check_schedule(Counting())


def test_a_run_without_an_end_is_a_matter_for_the_user():
    with pytest.raises(ConformanceError, match=r"or a UserError: failed at step 0 of None.*TypeError"):
        check_schedule(Wrapped(lambda c: torch.tensor(1.0 + 0 / c.total_steps)))


def test_leaving_the_bounds_is_caught_unless_of_no_weight():
    law = "temperatures of a run lie within the schedule's bounds"
    for bounds in ((0.5, 0.9), (1.1, 2.0)):
        schedule = Wrapped(one)
        schedule.bounds = lambda total, bounds=bounds: bounds
        with pytest.raises(ConformanceError, match=law):
            check_schedule(schedule)
    several = Returning(Temperatures(*[torch.tensor([[[1.0]], [[2.0]]])] * 2, torch.tensor([1.0, 0.0])))
    several.bounds = lambda total: (1.0, 1.0)
    check_schedule(several)


def test_a_conforming_schedule_passes():
    check_schedule(Wrapped(one))
    check_schedule(Wrapped(lambda c: 1 + torch.rand(c.batch_size, 1, generator=c.generator)))
