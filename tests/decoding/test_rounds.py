"""What every round counts."""

import pytest

from tempspec.interfaces import Request

from .engines import SAMPLING, VERIFIERS, prompts, run, speculative


@pytest.mark.parametrize("name", VERIFIERS)
def test_counts_of_every_round_are_coherent(wide_pair, name):
    target, draft = wide_pair
    temperature = 0.0 if VERIFIERS[name].greedy_only else 1.0
    requests = [Request(p, temperature, max_new_tokens=25, seed=i, key=str(i)) for i, p in enumerate(prompts(6, 40))]
    for completion in run(speculative(target, draft, VERIFIERS[name], slots=4, analytic=True), requests):
        assert len(completion.tokens) == 25
        assert sum(completion.accepted) + completion.target_calls == 25
        for drafted, tested, accepted in zip(completion.drafted, completion.tested, completion.accepted, strict=True):
            assert tested == min(accepted + 1, drafted)
            assert accepted <= drafted <= 3
        assert completion.seconds.total > 0


def test_analytic_acceptance_agrees_with_the_measured_one(wide_pair):
    target, draft = wide_pair
    requests = [Request(p, 1.3, max_new_tokens=60, seed=i, key=str(i)) for i, p in enumerate(prompts(60, 40))]
    done = run(speculative(target, draft, SAMPLING["TokenwiseRejection"], slots=30, analytic=True), requests)
    tested = sum(sum(c.tested) for c in done)
    accepted = sum(sum(c.accepted) for c in done)
    expected = sum(sum(c.expected_acceptance) for c in done)
    assert abs(accepted - expected) / tested < 4 * (0.25 / tested) ** 0.5


def test_the_first_stop_token_ends_a_request_and_its_counts(wide_pair):
    target, draft = wide_pair
    requests = [Request(p, 1.0, max_new_tokens=40, seed=i, key=str(i)) for i, p in enumerate(prompts(12, 40))]
    stop_ids = frozenset(range(0, 40, 4))
    stopping = [Request(r.prompt, 1.0, max_new_tokens=40, seed=r.seed, key=r.key, stop_ids=stop_ids) for r in requests]
    engine = speculative(target, draft, SAMPLING["TokenwiseRejection"], slots=5, analytic=True)
    for free, stopped in zip(run(engine, requests), run(engine, stopping), strict=True):
        at = next(i for i, token in enumerate(free.tokens) if token in stop_ids)
        assert stopped.tokens == free.tokens[: at + 1]
        assert stopped.finish == "stop"
        last = stopped.target_calls - 1
        assert sum(stopped.accepted) + stopped.target_calls - len(stopped.tokens) in (0, 1)
        assert stopped.tested[last] <= stopped.drafted[last]
        assert len(stopped.expected_acceptance) == stopped.target_calls
