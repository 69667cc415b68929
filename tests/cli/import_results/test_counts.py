"""Rounds that drafted nothing are found from tokens, though last rounds accept more than is written."""

import random

import pytest

from tempspec.cli.import_results.counts import of_vllm

K, LENGTH = 4, 63


def request(generator, share):
    """Rounds, some without a draft, until all tokens are written: what vLLM counts of them, and how many they are."""
    accepted, rounds, written = [], 0, 0
    while written < LENGTH:
        drafts = generator.random() < share
        many = next((one for one in range(K) if generator.random() > 0.8), K) if drafts else 0
        accepted += [many] if drafts else []
        rounds, written = rounds + 1, written + many + 1
    reached = tuple(float(sum(one >= place for one in accepted)) for place in range(1, K + 1))
    return (len(accepted), sum(accepted), K * len(accepted), reached), rounds


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_rounds_without_a_draft_are_estimated_without_bias(share):
    generator = random.Random(0)
    told = [request(generator, share) for _ in range(2000)]
    true = sum(rounds for _, rounds in told)
    found = sum(of_vllm(*counts, written=LENGTH).rounds for counts, _ in told)
    naive = sum(LENGTH - counts[1] for counts, _ in told)
    assert found == pytest.approx(true, rel=0.002)
    assert naive < 0.98 * true  # as if nothing was accepted beyond the end


def test_of_many_requests_together_as_of_each():
    generator = random.Random(1)
    told = [request(generator, 0.6) for _ in range(2000)]
    sums = [sum(column) for column in zip(*((*counts[:3], *counts[3]) for counts, _ in told), strict=True)]
    one = of_vllm(*sums[:3], tuple(sums[3:]), written=LENGTH * len(told), requests=len(told))
    assert one.rounds == pytest.approx(sum(rounds for _, rounds in told), rel=0.002)


def test_where_every_round_drafts_its_own_number_counts():
    counts, rounds = request(random.Random(2), 1.0)
    assert of_vllm(*counts, written=LENGTH).rounds == rounds
