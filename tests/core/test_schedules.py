import itertools
import math

import pytest

from tempspec.core import schedules as core

RAMPS = [core.linear, core.cosine, core.exponential]
every_ramp = pytest.mark.parametrize("ramp", RAMPS, ids=lambda ramp: ramp.__name__)


@every_ramp
@pytest.mark.parametrize(("start", "end"), [(2.0, 0.5), (0.5, 2.0), (1.0, 1.0)])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_a_ramp_starts_ends_stays_and_never_turns(ramp, start, end, steps):
    path = [ramp(count, start=start, end=end, steps=steps) for count in range(steps + 5)]
    assert path[0] == pytest.approx(start)
    assert path[steps:] == pytest.approx([end] * 5)
    sign = math.copysign(1.0, end - start)
    assert all(sign * (late - early) >= -1e-12 for early, late in itertools.pairwise(path))


@every_ramp
def test_a_ramp_is_half_way_at_its_own_mean(ramp):
    expected = {core.linear: 2.5, core.cosine: 2.5, core.exponential: 2.0}[ramp]
    assert ramp(5, start=4.0, end=1.0, steps=10) == pytest.approx(expected)


def test_linear_has_equal_steps_and_exponential_equal_ratios():
    line = [core.linear(count, start=4.0, end=1.0, steps=9) for count in range(10)]
    curve = [core.exponential(count, start=4.0, end=1.0, steps=9) for count in range(10)]
    assert [late - early for early, late in itertools.pairwise(line)] == pytest.approx([-1 / 3] * 9)
    assert [late / early for early, late in itertools.pairwise(curve)] == pytest.approx([0.25 ** (1 / 9)] * 9)


def test_cosine_is_flat_at_both_ends():
    path = [core.cosine(count, start=2.0, end=1.0, steps=1000) for count in (0, 1, 999, 1000)]
    assert path[0] - path[1] < 1e-5
    assert path[2] - path[3] < 1e-5


@pytest.mark.parametrize("boundaries", [[], [3], [1, 2, 8]])
def test_piecewise_counts_the_boundaries_passed(boundaries):
    values = [float(index) for index in range(len(boundaries) + 1)]
    for count in range(10):
        passed = sum(count >= boundary for boundary in boundaries)
        assert core.piecewise(count, boundaries=boundaries, values=values) == passed
