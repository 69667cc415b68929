import json

import pytest
import torch

from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.goodput import Gain, Speed, Timed, best, gains, speeds_of, speedup
from tempspec.metrics.parity import Counted, tokens_per_round


def speed(step, drafted, rounds=20, tokens=20, spread=0.0):
    requests = tuple(
        Timed(key, 0.2, step * rounds * (1 + spread * (-1) ** key), float(rounds), tokens) for key in range(12)
    )
    return Speed(1.0, 4, drafted, requests)


def tokens(*reached):
    return tokens_per_round([Counted.of_reached(key, 100, 100, reached) for key in range(12)])


def test_the_gain_is_tokens_of_a_round_over_its_cost():
    """A round of 4 costs twice a plain one, so of 1, 2, 3: 1.25, 1.5, 1.75."""
    found = gains(tokens(80, 50, 20, 10), speed(0.2, 4), speed(0.1, 0))
    expected = [1.8 / 1.25, 2.3 / 1.5, 2.5 / 1.75, 2.6 / 2]
    assert [one.speedup.value for one in found] == pytest.approx(expected)
    assert best(found).drafted == 2


def test_the_gain_of_the_timed_length_is_the_measured_speed_up():
    rounds = 50
    drafting, plain = speed(0.15, 2, rounds=rounds, tokens=rounds + 40 + 25), speed(0.1, 0)
    found = gains(tokens_per_round([Counted.of_reached(key, 50, 50, (40, 25)) for key in range(12)]), drafting, plain)
    assert found[-1].speedup.value == pytest.approx(speedup(drafting, plain).value)


def test_costs_that_are_dear_say_to_draft_nothing():
    found = gains(tokens(10, 1), speed(0.2, 2), speed(0.1, 0))
    assert best(found).drafted == 0
    assert "draft nothing" in str(best(found))


def test_noise_of_the_costs_is_in_the_interval():
    exact, noisy = (gains(tokens(80, 50), speed(0.2, 2, spread=spread), speed(0.1, 0))[0] for spread in (0.0, 0.3))
    assert exact.speedup.high - exact.speedup.low < 1e-9
    assert noisy.speedup.high - noisy.speedup.low > 0.05


def test_a_length_of_which_nothing_is_known_is_not_best():
    found = [Gain(1, Estimate.nothing()), Gain(2, Estimate(1.2, 1.1, 1.3, 12))]
    assert best(found).drafted == 2
    unknown = speed(0.2, 2, rounds=0)
    assert all(not one.speedup.value > 0 for one in gains(tokens(80, 50), unknown, speed(0.1, 0)))


def test_speeds_come_back_from_a_file():
    kept = [speed(0.2, 2), speed(0.1, 0)]
    assert speeds_of(json.loads(json.dumps([one.to_dict() for one in kept]))) == kept


def test_other_prompts_are_compared_without_pairing():
    drafting, plain = speed(0.1, 2, tokens=40), speed(0.1, 0)
    other = Speed(
        1.0, 4, 0, tuple(Timed(100 + one.prompt_key, *list(one.__dict__.values())[1:]) for one in plain.requests)
    )
    assert speedup(drafting, other).value == pytest.approx(2)
    assert torch.isfinite(torch.tensor(speedup(drafting, other).low, dtype=torch.float64))
