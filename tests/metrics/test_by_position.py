"""Acceptance by position of the round: what stops and refusals do to it."""

import math
import random

import pytest

from tempspec.decoding.rounds import append_round
from tempspec.decoding.slots import ActiveRow
from tempspec.interfaces import Completion, Request
from tempspec.metrics.by_position import JointAcceptance
from tests.metrics.definitions import K, fed, mean


def test_joint_acceptance_is_not_biased_by_accepted_stops():
    """With acceptance .8 everywhere and a stop in 1 of 20 tokens; of the rounds that drafted four, .388 accept them."""
    generator, rows = random.Random(3), []
    for prompt in range(1500):
        completion = Completion(request := Request((1,), stop_ids=frozenset([0]), max_new_tokens=10**6))
        flight = ActiveRow(request, completion, 1, 10**6, 0)
        while completion.finish == "length":
            accepted = next((place for place in range(K) if generator.random() > 0.8), K)
            emitted = [int(generator.random() > 0.05) for _ in range(accepted + 1)]
            append_round(flight, emitted, K, min(accepted + 1, K))
        rows.append(
            {"prompt_key": prompt, **{name: getattr(completion, name) for name in ("drafted", "tested", "accepted")}}
        )
    joint = JointAcceptance(K)
    joint.update(*rows)
    for place, estimate in enumerate(joint.estimates(), start=1):
        assert estimate.low < 0.8**place < estimate.high
        assert estimate.value == pytest.approx(0.8**place, abs=0.012)
    drafted = [(count, most) for row in rows for count, most in zip(row["accepted"], row["drafted"], strict=True)]
    assert mean(count == K for count, most in drafted if most == K) == pytest.approx(0.388, abs=0.01)


def test_nothing_is_accepted_after_a_position_that_never_is():
    metric = JointAcceptance(3, replicates=50)
    for prompt in range(8):
        metric.update({"prompt_key": prompt, "drafted": [3, 3], "tested": [1, 2], "accepted": [0, 1]})
    assert [estimate.value for estimate in metric.estimates()] == [0.5, 0.0, 0.0]
    low, high = metric.compute()[2, 1:3].tolist()
    assert math.isnan(low)
    assert math.isnan(high)  # nobody has tested it


def test_longer_rounds_than_declared_are_refused(rows):
    with pytest.raises(ValueError, match="expected rounds of at most 2 drafted tokens, got 4"):
        fed(JointAcceptance(2, replicates=10), rows)
