import pytest
import torch

from tempspec.interfaces import DraftLength
from tempspec.plugins.lengths import FixedLength
from tempspec.testing import ConformanceError, check_length


class Rule(DraftLength):
    longest = 4


class NegativeLongest(Rule):
    longest = -1


class TooLong(Rule):
    def limit(self, last):
        return torch.full_like(last.limit_B, 5)


class FollowsTheFirstRound(Rule):
    """Takes the -1 of a first round for a count."""

    def limit(self, last):
        return last.accepted_B


class FloatLimit(Rule):
    def limit(self, last):
        return last.accepted_B.clamp(min=0).float()


class Remembers(Rule):
    """Counts how often it was asked."""

    def __init__(self):
        self.asked = 0

    def limit(self, last):
        self.asked += 1
        return torch.full_like(last.limit_B, self.asked % 2)


class BatchAverage(Rule):
    def proceed(self, token_B, logq_BV):
        return logq_BV[:, 0] > logq_BV[:, 0].mean()


class Probabilities(Rule):
    def proceed(self, token_B, logq_BV):
        return logq_BV.gather(1, token_B[:, None]).squeeze(1).exp()


class Writes(Rule):
    def proceed(self, token_B, logq_BV):
        return logq_BV.exp_()[:, 0] > 0.5


class Sometimes(Rule):
    """Has nothing to say about a batch of many rows."""

    def proceed(self, token_B, logq_BV):
        return token_B > 0 if len(token_B) == 1 else None


@pytest.mark.parametrize(
    ("rule", "law"),
    [
        (NegativeLongest(), "longest is an int, 0 or more"),
        (TooLong(), r"limit lies in 0..longest = 4"),
        (FollowsTheFirstRound(), r"limit lies in 0..longest = 4"),
        (FloatLimit(), "limit is int64"),
        (Remembers(), "a row alone gets the answer"),
        (BatchAverage(), "a row alone gets the answer"),
        (Probabilities(), "proceed is bool"),
        (Writes(), "nothing is written to the arguments"),
        (Sometimes(), "a row alone gets the answer"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DraftLength) else None,
)
def test_the_kit_refuses(rule, law):
    with pytest.raises(ConformanceError, match=law):
        check_length(rule)


def test_a_rule_without_options_of_its_own_conforms():
    check_length(Rule())
    check_length(FixedLength(3), rows=1)
