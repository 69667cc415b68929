"""Tiny real models with known laws: small enough to enumerate, far enough apart to reject often."""

import pytest

from tests.tiny import gpt2, llama


def tiny_llama(seed, vocabulary=5, *, layers=1, gain=4.0, context=256):
    """A random Llama whose laws are far from uniform."""
    return llama(seed, vocabulary, layers, gain=gain * 8, inner=3, context=context)


@pytest.fixture(scope="session")
def target():
    return tiny_llama(0)


@pytest.fixture(scope="session")
def draft():
    return tiny_llama(1)


@pytest.fixture(scope="session")
def flat_pair():
    """Flatter laws, closer to each other: long accepted runs show what looks ahead wrongly."""
    return tiny_llama(0, gain=1.0), tiny_llama(1, gain=1.0)


@pytest.fixture(scope="session")
def wide_pair():
    """A two-layer target and a draft with a learned-position architecture, 40 tokens."""
    return tiny_llama(3, 40, layers=2, gain=2.0), gpt2(3, 40, context=256)
