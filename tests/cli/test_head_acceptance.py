import pytest

from tempspec.cli.head_acceptance import HeadAcceptance
from tempspec.interfaces import Completion, Request


def completion(*rounds):
    """Of rounds of (drafted, tested, accepted)."""
    done = Completion(Request((1,)))
    done.drafted, done.tested, done.accepted = (list(column) for column in zip(*rounds, strict=True))
    done.tokens = [1] * (sum(done.accepted) + len(rounds))
    return done


def test_shares_are_of_the_tokens_that_were_tested():
    found = HeadAcceptance.of(1.0, [completion((2, 1, 0), (2, 2, 1)), completion((2, 2, 2))], 2)
    assert found.by_position == (pytest.approx(2 / 3), pytest.approx(1 / 2))
    assert found.block_efficiency == pytest.approx(6 / 3)
    assert str(found) == "T = 1: 2.00 tokens per pass; accepted by position: 0.67 0.50"
