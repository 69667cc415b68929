"""Trees through the engine: the target's law, its independence of the batch, its greedy text."""

import pytest
import torch

from tempspec.decoding.engine import Engine
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.plugins.drafters import CausalLM, EarlyExit
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import KSequential, RecursiveRejection, Traversal
from tempspec.plugins.verifiers import BlockVerification, GreedyMatch, GumbelCoupling, SampledMatch
from tests.slow import slow_but

from .conftest import tiny_llama
from .engines import greedy_text, prompts, run, speculative
from .joint_laws import p_values

PAIRS = {
    "independent": (RecursiveRejection(), StaticTree([2, 2], siblings="independent")),
    "sequential": (KSequential(), StaticTree([3, 1, 1], siblings="independent")),
    "distinct": (RecursiveRejection(), StaticTree([2, 2], siblings="distinct")),
    "traversal": (Traversal(), StaticTree([2, 2], siblings="distinct")),
    "traversal of private duplicates": (Traversal(), StaticTree([3, 1, 1], siblings="independent")),
    "traversal of greedy drafts": (Traversal(), StaticTree(parents=[-1, -1, 0, 0, 1, 2, 4, 4], siblings="greedy")),
    "dynamic": (Traversal(), DynamicTree(width=2, depth=3, nodes=5)),
    "naive": (SampledMatch(), StaticTree([3, 2], siblings="distinct")),
}


ONE_OF_A_KIND = "independent", "traversal", "dynamic"


@pytest.mark.parametrize("name", slow_but(*ONE_OF_A_KIND, among=PAIRS))
def test_the_joint_law_is_the_targets(target, draft, name):
    verifier, drafter = PAIRS[name]
    assert min(p_values(target, draft, verifier, 4000, drafter=drafter)) > 1e-4


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_expected_without_coins_is_what_is_counted(target, draft, name):
    verifier, drafter = PAIRS[name]
    requests = [Request((1 + i % 3,), 1.0, max_new_tokens=8, seed=i, key=str(i)) for i in range(400)]
    done = run(speculative(target, draft, verifier, drafter=drafter, slots=100, analytic=True), requests)
    accepted, tested = sum(sum(c.accepted) for c in done), sum(sum(c.tested) for c in done)
    spread = 5 * (tested / 4) ** 0.5
    bounded = drafter.siblings != "distinct" or drafter.most_children == 2
    assert all(len(c.expected_length) == len(c.accepted) for c in done)
    assert sum(sum(c.expected_length) for c in done) == pytest.approx(accepted, abs=spread)
    assert all(len(c.expected_acceptance) == (0 if isinstance(verifier, Traversal) else len(c.accepted)) for c in done)
    if not isinstance(verifier, Traversal):
        assert sum(sum(c.expected_acceptance) for c in done) == pytest.approx(accepted, abs=spread)
        if bounded:
            assert sum(sum(c.optimum) for c in done) >= accepted - spread
    assert all(len(c.optimum) == (len(c.accepted) if bounded else 0) for c in done)


def test_early_exit_drafts_with_the_targets_layers(wide_pair):
    target, _ = wide_pair
    full = speculative(target, None, BlockVerification(), drafter=EarlyExit(2), slots=2)
    requests = [Request(prompt, 1.0, max_new_tokens=12, seed=i, key=str(i)) for i, prompt in enumerate(prompts(3, 40))]
    for completion in run(full, requests):  # all of its layers: the target itself
        assert completion.accepted == completion.drafted


def test_the_joint_law_survives_early_exit(wide_pair, target):
    assert min(p_values(target, None, BlockVerification(), 4000, drafter=EarlyExit(1))) > 1e-4


@pytest.mark.parametrize("slots", slow_but(3, among=[1, 3]))
@pytest.mark.parametrize("name", PAIRS)
def test_temperature_zero_gives_the_greedy_text_of_generate(wide_pair, name, slots):
    target, draft = wide_pair
    verifier, drafter = PAIRS[name]
    requests = [Request(p, 0.0, max_new_tokens=12 + i, key=str(i)) for i, p in enumerate(prompts(5, 40))]
    warm = [Request((1, 2), 1.0, max_new_tokens=30, key="warm"), Request((3,), 0.7, 0.0, key="cool")]
    completions = run(speculative(target, draft, verifier, drafter=drafter, slots=slots), [*requests, *warm])
    for request, completion in zip(requests, completions, strict=False):
        assert completion.tokens == greedy_text(target, request.prompt, request.max_new_tokens)


def test_greedy_matching_of_trees_gives_the_greedy_text(wide_pair):
    target, draft = wide_pair
    requests = [Request(p, 0.0, max_new_tokens=15, key=str(i)) for i, p in enumerate(prompts(4, 40))]
    engine = speculative(target, draft, GreedyMatch(), drafter=DynamicTree(3, 3, 6), slots=2)
    for request, completion in zip(requests, run(engine, requests), strict=True):
        assert completion.tokens == greedy_text(target, request.prompt, 15)


@pytest.mark.parametrize("name", PAIRS)
def test_a_request_gives_the_same_tokens_alone_and_in_any_batch(wide_pair, name):
    target, draft = wide_pair
    verifier, drafter = PAIRS[name]
    requests = [
        Request(p, [0.0, 0.7, 1.5][i % 3], max_new_tokens=5 + 3 * i, seed=100 + i, key=str(i))
        for i, p in enumerate(prompts(6, 40))
    ]
    alone = [run(speculative(target, draft, verifier, drafter=drafter), [request])[0] for request in requests]
    together = run(speculative(target, draft, verifier, drafter=drafter, slots=4), requests)
    for one, other in zip(alone, together, strict=True):
        assert (one.tokens, one.accepted) == (other.tokens, other.accepted)


def test_a_draft_equal_to_the_target_is_accepted_to_the_leaf(wide_pair):
    target, _ = wide_pair
    engine = speculative(target, target, Traversal(), drafter=StaticTree([2, 2, 1]), slots=2)
    requests = [Request(p, 1.0, max_new_tokens=16, seed=i, key=str(i)) for i, p in enumerate(prompts(3, 40))]
    for completion in run(engine, requests):
        assert completion.accepted == completion.drafted == completion.tested


def test_a_rule_refuses_trees_that_it_cannot_verify(target, draft):
    for verifier, found in (
        (BlockVerification(), "chains only"),
        (KSequential(), "independent; got 'distinct'"),
        (GumbelCoupling(), "siblings are drawn with their own noise"),
    ):
        with pytest.raises(UserError, match=found):
            Engine(
                target, 5, verifier=verifier, drafter=StaticTree([2], siblings="distinct"), length=FixedLength(2),
                draft=draft,
            )  # fmt: skip


@pytest.mark.parametrize("drafter", [CausalLM(), StaticTree([2, 2]), DynamicTree(width=2, depth=3, nodes=5)])
def test_a_draft_whose_logits_are_no_numbers_is_named(drafter):
    broken = tiny_llama(1)
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    engine = speculative(tiny_llama(0), broken, RecursiveRejection(), drafter=drafter)
    with pytest.raises(UserError, match="the draft's logits"):
        run(engine, [Request((1, 2), 1.0, max_new_tokens=4)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_smaller_draft_head_drafts_trees_in_every_precision(dtype):
    target, small = tiny_llama(0, 7).to(dtype), tiny_llama(1, 5).to(dtype)
    engine = speculative(target, small, RecursiveRejection(), drafter=StaticTree([2, 2]))
    (completion,) = run(engine, [Request((1, 2), 1.0, max_new_tokens=6)])
    assert len(completion.tokens) == 6


@pytest.mark.parametrize(
    ("drafter", "longest", "verified", "levels"),
    [
        (CausalLM(), 3, [1, 2, 3, 4], [1, 1, 1]),
        (StaticTree([3, 2]), 2, [1, 4, 10], [1, 3]),
        (DynamicTree(width=2, depth=3, nodes=5), 3, [1, 6, 6, 7], [1, 5, 1]),
    ],
)
def test_what_is_timed_is_what_a_round_feeds(monkeypatch, target, draft, drafter, longest, verified, levels):
    fed = {"target": [], "draft": []}

    def seconds(model, rows, text, width):
        fed["target" if model is engine._target else "draft"].append(width)
        return float(width)

    monkeypatch.setattr("tempspec.decoding.step_times.pass_seconds", seconds)
    engine = speculative(target, draft, RecursiveRejection(), drafter=drafter, length=FixedLength(longest))
    times = engine.step_times(5)
    assert fed["target"] == list(times.verify) == verified
    assert sorted(fed["draft"]) == sorted(set(levels))
    assert times.draft == pytest.approx(sum(levels) / len(levels))
