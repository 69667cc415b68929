"""Lossy rules through the engine: counts, the stated law of one position, and its distance from the target's."""

import pytest
import torch

from tempspec.core.lossy import distance
from tempspec.core.sampling import log_law
from tempspec.decoding.engine import Engine
from tempspec.interfaces import Request
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength, Goodput
from tests.built_ins import built_in

from .joint_laws import chi_square_p_value

LOSSY = {name: rule() for name, rule in built_in("verifiers").items() if not rule.lossless}
LENGTHS = {"fixed": FixedLength(3), "none": FixedLength(0), "goodput": Goodput(acceptance=0.3)}
WITHOUT_LAW = {"MARS"}
"""Rules whose law depends on more than p and q: they report no distance."""


def decoded(pair, rule, requests, *, length=LENGTHS["fixed"], slots=4):
    target, draft = pair
    size = target.config.vocab_size
    engine = Engine(
        target, size, verifier=rule, drafter=CausalLM(), length=length, draft=draft, slots=slots, analytic=True
    )
    return list(engine.run(requests))


def temperatures(rule):
    return (0.0,) if rule.greedy_only else (0.0, 0.7, 1.5)


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("name", LOSSY)
def test_counts_and_distances_add_up(wide_pair, name, length):
    rule = built_in("verifiers")[name]()
    requests = [
        Request((1, 2, 3)[:n], t, max_new_tokens=17, seed=n, key=f"{t} {n}") for t in temperatures(rule) for n in (1, 3)
    ]
    completions = decoded(wide_pair, rule, requests, length=length)
    assert {completion.request.key for completion in completions} == {request.key for request in requests}
    for completion in completions:
        drafted, tested, accepted = completion.drafted, completion.tested, completion.accepted
        assert len(completion.tokens) == 17 == sum(accepted) + completion.target_calls
        assert all(count <= length.longest for count in drafted)
        assert tested == [min(a + 1, d) for a, d in zip(accepted, drafted, strict=True)]
        rounds = 0 if name in WITHOUT_LAW else completion.target_calls
        assert len(completion.total_variation) == len(completion.kl) == rounds
        for variation, kl, count in zip(completion.total_variation, completion.kl, tested, strict=False):
            assert -1e-5 <= variation <= count + 1e-5
            assert kl >= 2 * variation**2 / max(count, 1) - 1e-4  # Pinsker's inequality, summed


@pytest.mark.parametrize("name", sorted(LOSSY.keys() - WITHOUT_LAW))
def test_the_first_position_has_the_stated_law_and_distance(flat_pair, name):
    rule, prompt, runs = LOSSY[name], (1, 2, 3), 3000
    requests = [Request(prompt, 0.8, 1.2, max_new_tokens=2, seed=seed, key=str(seed)) for seed in range(runs)]
    completions = decoded(flat_pair, rule, requests, slots=512)
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[:, -1:].double() for model in flat_pair]
    logp, logq = (log_law(law, torch.tensor([t])) for law, t in zip(logits, (0.8, 1.2), strict=True))
    stated = rule.emitted_law(logp, logq)
    first = torch.tensor([completion.tokens[0] for completion in completions])
    assert chi_square_p_value(torch.bincount(first, minlength=5), stated[0, 0].double().exp() * runs) > 1e-4
    variation, kl = (float(value) for value in distance(stated, logp))
    assert completions[0].total_variation[0] == pytest.approx(variation, abs=1e-5)
    assert completions[0].kl[0] == pytest.approx(kl, abs=1e-5)


@pytest.mark.parametrize("name", ["TokenwiseRejection", "BlockVerification"])
def test_lossless_rules_have_no_distance(wide_pair, name):
    rule = built_in("verifiers")[name]()
    (completion,) = decoded(wide_pair, rule, [Request((1,), max_new_tokens=6)])
    assert completion.total_variation == completion.kl == []
