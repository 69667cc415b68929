import random

import pytest

from tempspec.interfaces import BASELINE
from tests.metrics.definitions import K


def make_row(generator, *, verifier="block", prompt_set="code", temperature=1.0, prompt=0, pass_="acceptance"):
    """A random row record that obeys the engine's rules: tested = min(accepted + 1, drafted)."""
    plain = verifier == BASELINE
    drafted = [0 if plain else generator.randint(0, K) for _ in range(generator.randint(1, 6))]
    accepted = [generator.randint(0, count) for count in drafted]
    tested = [min(count + 1, most) for count, most in zip(accepted, drafted, strict=True)]
    return {
        "key": str(generator.random()),
        "pass": pass_,
        "verifier": verifier,
        "prompt_set": prompt_set,
        "prompt_index": prompt,
        "prompt_key": 7919 * prompt - 2**62,
        "sample": 0,
        "target_temperature": temperature,
        "draft_temperature": temperature,
        "seed": 1,
        "prompt_tokens": 5,
        "tokens": [3] * (sum(accepted) + len(accepted)),
        "finish": "length",
        "drafted": drafted,
        "tested": tested,
        "accepted": accepted,
        "expected_acceptance": [generator.uniform(0, count) for count in tested],
        "expected_length": [generator.uniform(0, count) for count in drafted],
        "optimum": [generator.uniform(0, count) for count in tested],
        "total_variation": [generator.uniform(0, count) for count in tested],
        "kl": [generator.uniform(0, 2 * count) for count in tested],
        "seconds_prefill": generator.random(),
        "seconds_draft": generator.random(),
        "seconds_verify": generator.random(),
        "seconds_overhead": generator.random(),
    }


@pytest.fixture
def rows():
    generator = random.Random(0)
    return [make_row(generator, prompt=index % 12) for index in range(40)]


@pytest.fixture
def sweep_rows():
    generator = random.Random(1)
    return [
        make_row(generator, verifier=verifier, prompt_set=name, temperature=temperature, prompt=prompt, pass_=pass_)
        for verifier in ("block", BASELINE)
        for name in ("code", "prose")
        for temperature in (0.0, 1.0)
        for pass_ in ("acceptance", "timing")
        for prompt in range(8)
    ]
