import math

import pytest
import torch
from tempspec_example.verifiers import SpecVerification

from tempspec.interfaces import Draft
from tempspec.testing import check_verifier

LOGITS = torch.tensor([3.0, 2.5, 1.0, 0.0])


@pytest.mark.parametrize("best", [1, 2])
@pytest.mark.parametrize("gap", [0.0, 2.0])
def test_it_keeps_the_laws_of_its_family(best, gap):
    check_verifier(SpecVerification(best, gap))


def accepted(rule, *tokens):
    """How many of a draft's tokens are accepted, and what follows, when the target has the same logits everywhere."""
    token_BK, drafted = torch.tensor([tokens]), len(tokens)
    draft = Draft.certain(token_BK, torch.tensor([drafted]), len(LOGITS))
    verdict = rule.verify(LOGITS.expand(1, drafted + 1, -1), draft, noise=None)
    return int(verdict.accepted_B), int(verdict.next_token_B)


@pytest.mark.parametrize(
    ("best", "gap", "tokens", "expected"),
    [
        (1, 9.0, (0, 0, 1), 2),  # greedy matching
        (2, 9.0, (1, 0, 2), 2),  # the second best too, the third not
        (4, 0.5, (1, 2), 1),  # close enough; too far, whatever its rank
        (4, 9.0, (3, 2, 1, 0), 4),  # everything
        (2, 1.0, (), 0),  # nothing drafted
    ],
)
def test_by_hand(best, gap, tokens, expected):
    assert accepted(SpecVerification(best, gap), *tokens) == (expected, 0)


def test_with_a_gap_of_0_it_is_greedy_matching():
    assert [accepted(SpecVerification(4, 0.0), token) for token in range(4)] == [(1, 0), (0, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize("options", [{"best": 0}, {"gap": -1.0}, {"gap": math.nan}, {"gap": math.inf}])
def test_other_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        SpecVerification(**options)
