import math

import pytest
import torch

from tempspec.errors import UserError
from tempspec.interfaces import ScheduleContext
from tempspec.plugins import schedules as plugins
from tempspec.testing import check_schedule
from tests.built_ins import built_in
from tests.ids import plain

OPTIONS = {
    "Constant": [{}, {"temperature": 0.3}],
    "Linear": [{"start": 2.0, "end": 0.5}, {"start": 0.5, "end": 2.0, "steps": 3}],
    "Cosine": [{"start": 2.0, "end": 0.5}, {"start": 0.5, "end": 2.0, "steps": 3}],
    "Exponential": [{"start": 2.0, "end": 0.5}, {"start": 0.5, "end": 2.0, "steps": 3}],
    "Piecewise": [{"boundaries": [], "temperatures": [1.0]}, {"boundaries": [2, 5], "temperatures": [2.0, 1.0, 0.5]}],
    "Uniform": [
        {"low": 0.3, "high": 2.0},
        {"low": 0.3, "high": 2.0, "per": "sequence"},
        {"low": 0.3, "high": 2.0, "per": "token"},
        {"low": 1.0, "high": 1.0},
    ],
    "Grid": [{"temperatures": [1.0]}, {"temperatures": [0.5, 1.0, 2.0], "weights": [1.0, 0.0, 3.0]}],
    "Matched": [{"unknown": 0.7}, {"unknown": 1.0, "low": 0.5}],
    "TeacherEntropy": [{}, {"low": 2.0, "high": 0.5}],
    "TokenDifficulty": [{}, {"base": 2.0, "strength": -0.3}],
    "Curriculum": [{"steps": 5}, {"start": 0.5, "low": 0.1, "span": 2.0}],
}
WITHOUT_DRAFT_SCALE = {
    "LogitPeaks": [{}, {"base": 2.0}],
    "Join": [
        {"schedules": [plugins.Constant(2.0), plugins.Linear(2.0, 1.0)], "boundaries": [3]},
        {"schedules": [plugins.TeacherEntropy(), plugins.Grid([1.0, 2.0])], "boundaries": [1]},
    ],
}


def context(step=0, total=10, batch=4, seed=0, **others):
    known = {"keep_BT": torch.ones(batch, 2, dtype=torch.bool), "generation_temperature_B": torch.ones(batch)}
    known |= {name: torch.rand(batch, 2) + 0.1 for name in ("entropy_BT", "loss_BT", "peak_p_BT", "peak_q_BT")}
    return ScheduleContext(step, total, batch, torch.Generator().manual_seed(seed), **known | others)


def test_every_built_in_is_registered_and_has_options_here():
    assert sorted(built_in("schedules")) == plugins.__all__ == sorted(OPTIONS | WITHOUT_DRAFT_SCALE)


@pytest.mark.parametrize("draft_scale", [1.0, 1.5])
@pytest.mark.parametrize(
    ("name", "options"), [(name, one) for name, many in OPTIONS.items() for one in many], ids=plain
)
def test_conformance(name, options, draft_scale):
    schedule = getattr(plugins, name)(**options, draft_scale=draft_scale)
    check_schedule(schedule)
    got = schedule(context())
    torch.testing.assert_close(got.draft, got.target * draft_scale)


@pytest.mark.parametrize(
    ("name", "options"), [(name, one) for name, many in WITHOUT_DRAFT_SCALE.items() for one in many], ids=plain
)
def test_conformance_without_a_scale(name, options):
    check_schedule(getattr(plugins, name)(**options))


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


@pytest.mark.parametrize(("per", "shape"), [("batch", ()), ("sequence", (1000, 1)), ("token", (1000, 2))])
def test_uniform_draws_from_its_range(per, shape):
    schedule = plugins.Uniform(low=0.5, high=2.0, per=per)
    draws = [schedule(context(batch=1000, seed=seed)).target for seed in range(1000 if per == "batch" else 1)]
    assert draws[0].shape == shape
    values = torch.cat([draw.flatten() for draw in draws])
    assert values.min() >= 0.5
    assert values.max() <= 2.0
    # The mean of 1000 draws has standard error (2 - 0.5) / sqrt(12 * 1000) = 0.0137; 4 of them.
    assert values.mean() == pytest.approx(1.25, abs=0.055)


def test_a_schedule_of_one_step_is_at_its_end_behind_it():
    linear = plugins.Linear(1.0, 2.0, steps=1)
    assert [float(linear(context(step)).target.max()) for step in (0, 1, 5)] == [1.0, 2.0, 2.0]


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
        (lambda: plugins.Grid([]), "temperatures must be at least one, got none"),
        (lambda: plugins.Grid([1.0, 0.0]), "each of temperatures must be above 0"),
        (lambda: plugins.Grid([1.0], [1.0, 2.0]), "weights must be 1 numbers of 0 or more"),
        (lambda: plugins.Grid([1.0, 2.0], [0.0, 0.0]), "not all 0, got"),
        (lambda: plugins.Matched(unknown=0.0), "unknown must be above 0"),
        (lambda: plugins.Matched(low=0.0), "low must be above 0"),
        (lambda: plugins.Join([plugins.Constant()], [3]), "schedules must be one more than the 1 boundaries, got 1"),
        (lambda: plugins.Join([plugins.Constant()] * 3, [3, 3]), "boundaries must increase"),
        (lambda: plugins.TeacherEntropy(half=0.0), "half must be above 0"),
        (lambda: plugins.TokenDifficulty(strength=float("nan")), "strength must be finite, got nan"),
        (lambda: plugins.LogitPeaks(base=-1.0), "base must be above 0"),
        (lambda: plugins.Curriculum(start=1.0), "start must be between low = 1.0 and low"),
        (lambda: plugins.Curriculum(steps=0), "steps must be 1 or more"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_grid_carries_its_weights_scaled_to_one():
    got = plugins.Grid([0.5, 2.0], weights=[1.0, 3.0], draft_scale=2.0)(context())
    assert got.target.shape == (2, 1, 1)
    assert got.target.flatten().tolist() == [0.5, 2.0]
    assert got.draft.flatten().tolist() == [1.0, 4.0]
    assert got.weight_G.tolist() == [0.25, 0.75]


def test_matched_gives_each_row_its_own_temperature():
    own = torch.tensor([0.7, torch.nan, 0.0, 2.0])
    got = plugins.Matched(unknown=1.5, low=0.2)(context(generation_temperature_B=own))
    torch.testing.assert_close(got.target, torch.tensor([[0.7], [1.5], [0.2], [2.0]]))
    with pytest.raises(UserError, match="got rows without one"):
        plugins.Matched()(context(generation_temperature_B=own))
    with pytest.raises(UserError, match="got rows without one"):
        plugins.Matched()(context(generation_temperature_B=None))


def test_joined_schedules_count_from_their_own_beginning():
    joined = plugins.Join([plugins.Linear(1.0, 2.0), plugins.Linear(4.0, 2.0)], boundaries=[4])
    path = [float(joined(context(step)).target) for step in range(11)]
    assert path == pytest.approx([1, 1.25, 1.5, 1.75, 4, 4 - 1 / 3, 4 - 2 / 3, 3, 3 - 1 / 3, 3 - 2 / 3, 2])
    assert plugins.Join([plugins.LogitPeaks(), plugins.TeacherEntropy()], [1]).needs == {"peaks", "entropy"}


@pytest.mark.parametrize(("step", "moves"), [(0, False), (3, True), (5, False)])
def test_joined_schedules_learn_with_gradient_0_out_of_turn(step, moves):
    curriculum = plugins.Curriculum(start=3.0, steps=1)
    got = plugins.Join([plugins.Constant(), curriculum, plugins.Grid([1.0, 2.0])], [2, 5])(context(step))
    got.target.sum().backward()
    assert bool(curriculum.theta.grad) is moves


@pytest.mark.parametrize(
    ("schedule", "bounds"),
    [
        (plugins.Constant(0.7, draft_scale=2.0), (1.4, 1.4)),
        (plugins.Linear(2.0, 0.5), (0.5, 2.0)),
        (plugins.Linear(2.0, 1.0, steps=180), (1.5, 2.0)),
        (plugins.Cosine(1.0, 3.0, steps=10), (1.0, 3.0)),
        (plugins.Piecewise([30, 60], [1.0, 3.0, 0.5]), (0.5, 3.0)),
        (plugins.Piecewise([30, 90], [1.0, 3.0, 0.5]), (1.0, 3.0)),
        (plugins.Uniform(0.5, 2.0, per="token"), (0.5, 2.0)),
        (plugins.Grid([0.5, 1.0, 1.5], weights=[0, 1, 1]), (1.0, 1.5)),
        (plugins.Join([plugins.Uniform(0.5, 2.0), plugins.Linear(3.0, 1.0, steps=120)], [30]), (0.5, 3.0)),
        (plugins.Join([plugins.Constant(), plugins.Curriculum()], [95]), (1.0, 1.0)),
        (plugins.Join([plugins.Constant(), plugins.Curriculum()], [30]), None),
        (plugins.Matched(), None),
        (plugins.TeacherEntropy(), None),
    ],
    ids=plain,
)
def test_the_bounds_of_a_run_of_90_steps(schedule, bounds):
    assert schedule.bounds(90) == (bounds and pytest.approx(bounds))


def test_a_run_without_an_end_has_the_bounds_of_all_turns():
    assert plugins.Piecewise([30, 90], [1.0, 3.0, 0.5]).bounds(None) == (0.5, 3.0)
    assert plugins.Linear(2.0, 1.0, steps=180).bounds(None) == (1.0, 2.0)


def test_hard_tokens_are_colder_by_the_median_that_counts():
    loss = torch.tensor([[1.0, 2.0, 4.0, 1000.0]])
    keep = torch.tensor([[True, True, True, False]])
    got = plugins.TokenDifficulty(base=2.0, strength=0.5)(context(batch=1, loss_BT=loss, keep_BT=keep)).target
    assert got[0].tolist() == pytest.approx([2 * math.exp(0.3), 2.0, 2 * math.exp(-0.3), 2.0])  # tanh(log 2) = 0.6


def test_schedules_that_look_at_tokens_say_what_they_need():
    for name in ("TeacherEntropy", "TokenDifficulty", "LogitPeaks"):
        with pytest.raises(UserError, match="expected a context with"):
            getattr(plugins, name)()(ScheduleContext(0, 10, 4, torch.Generator()))
    with pytest.raises(UserError, match="expected a context with keep_BT"):
        plugins.Uniform(0.5, 1.0, per="token")(ScheduleContext(0, 10, 4, torch.Generator()))


@pytest.mark.parametrize("step", [0, 5, 10])
def test_the_curriculums_temperature_climbs_the_loss(step):
    schedule = plugins.Curriculum(start=3.0)
    got = schedule(context(step=step))
    assert got.target.item() == pytest.approx(3.0)
    (2 * got.target).backward()
    share = 2 / 20
    weight = (1 - math.cos(math.pi * step / 10)) / 2
    assert schedule.theta.grad.item() == pytest.approx(-weight * 2 * 20 * share * (1 - share), abs=1e-6)
