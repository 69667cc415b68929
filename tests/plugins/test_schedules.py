import pytest
import torch

from tempspec import registry
from tempspec.errors import UserError
from tempspec.interfaces import ScheduleContext
from tempspec.plugins import schedules as plugins
from tempspec.testing import check_schedule

OPTIONS = {
    "Constant": [{}, {"temperature": 0.3}],
    "Linear": [{"start": 2.0, "end": 0.5}, {"start": 0.5, "end": 2.0, "steps": 3}],
    "Cosine": [{"start": 2.0, "end": 0.5}, {"start": 0.5, "end": 2.0, "steps": 3}],
    "Exponential": [{"start": 2.0, "end": 0.5}, {"start": 0.5, "end": 2.0, "steps": 3}],
    "Piecewise": [{"boundaries": [], "temperatures": [1.0]}, {"boundaries": [2, 5], "temperatures": [2.0, 1.0, 0.5]}],
    "Uniform": [{"low": 0.3, "high": 2.0}, {"low": 0.3, "high": 2.0, "per": "sequence"}, {"low": 1.0, "high": 1.0}],
}
NAMES = [
    plugin.name for plugin in registry.scan() if plugin.family == "schedules" and plugin.distribution == "tempspec"
]


def context(step=0, total=10, batch=4, seed=0):
    return ScheduleContext(step, total, batch, torch.Generator().manual_seed(seed))


def test_every_built_in_is_registered_and_has_options_here():
    assert sorted(NAMES) == plugins.__all__ == sorted(OPTIONS)


@pytest.mark.parametrize("draft_scale", [1.0, 1.5])
@pytest.mark.parametrize(("name", "options"), [(name, one) for name, many in OPTIONS.items() for one in many], ids=str)
def test_conformance(name, options, draft_scale):
    schedule = getattr(plugins, name)(**options, draft_scale=draft_scale)
    check_schedule(schedule)
    got = schedule(context())
    torch.testing.assert_close(got.draft, got.target * draft_scale)


@pytest.mark.parametrize("name", ["Linear", "Cosine", "Exponential"])
@pytest.mark.parametrize(("steps", "total", "last"), [(None, 10, 10), (4, 10, 4), (4, None, 4)])
def test_a_ramp_goes_from_start_to_end_and_stays(name, steps, total, last):
    schedule = getattr(plugins, name)(start=3.0, end=0.5, steps=steps)
    path = [float(schedule(context(step, total)).target) for step in range(2 * last)]
    assert path[0] == pytest.approx(3.0)
    assert path[last:] == pytest.approx([0.5] * last)
    assert path[: last + 1] == sorted(set(path), reverse=True)


@pytest.mark.parametrize("name", ["Linear", "Cosine", "Exponential"])
def test_a_ramp_without_steps_refuses_a_run_without_an_end(name):
    with pytest.raises(UserError, match="give the schedule `steps`"):
        getattr(plugins, name)(start=3.0, end=0.5)(context(total=None))


@pytest.mark.parametrize("name", ["Linear", "Cosine", "Exponential"])
def test_a_run_of_no_steps_has_a_temperature(name):
    assert float(getattr(plugins, name)(start=3.0, end=0.5)(context(total=0)).target) == 3.0


def test_piecewise_changes_at_its_boundaries():
    schedule = plugins.Piecewise(boundaries=[2, 5], temperatures=[2.0, 1.0, 0.5])
    assert [float(schedule(context(step)).target) for step in range(7)] == [2.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(("per", "shape"), [("batch", ()), ("sequence", (1000, 1))])
def test_uniform_draws_from_its_range(per, shape):
    schedule = plugins.Uniform(low=0.5, high=2.0, per=per)
    draws = [schedule(context(batch=1000, seed=seed)).target for seed in range(1000 if per == "batch" else 1)]
    assert draws[0].shape == shape
    values = torch.cat([draw.flatten() for draw in draws])
    assert values.min() >= 0.5
    assert values.max() <= 2.0
    # The mean of 1000 draws has standard error (2 - 0.5) / sqrt(12 * 1000) = 0.0137; 4 of them.
    assert values.mean() == pytest.approx(1.25, abs=0.055)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plugins.Constant(0.0), "temperature must be above 0 and finite, got 0.0"),
        (lambda: plugins.Constant(float("nan")), "temperature must be above 0 and finite, got nan"),
        (lambda: plugins.Constant(draft_scale=-1.0), "draft_scale must be above 0"),
        (lambda: plugins.Linear(-1.0, 1.0), "start must be above 0"),
        (lambda: plugins.Cosine(1.0, float("inf")), "end must be above 0 and finite, got inf"),
        (lambda: plugins.Exponential(1.0, 0.0), "end must be above 0"),
        (lambda: plugins.Linear(1.0, 2.0, steps=0), "steps must be 1 or more, got 0"),
        (lambda: plugins.Piecewise([5, 5], [1.0, 2.0, 3.0]), "boundaries must increase"),
        (lambda: plugins.Piecewise([0], [1.0, 2.0]), "boundaries must increase from above 0"),
        (lambda: plugins.Piecewise([5], [1.0]), "temperatures must be one more than the 1 boundaries, got 1"),
        (lambda: plugins.Piecewise([5], [1.0, 0.0]), "each of temperatures must be above 0"),
        (lambda: plugins.Uniform(0.0, 1.0), "low must be above 0"),
        (lambda: plugins.Uniform(2.0, 1.0), "high must be at least low = 2.0, got 1.0"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
