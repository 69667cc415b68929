import pytest
import torch

from tempspec import registry
from tempspec.errors import UserError
from tempspec.interfaces import LastRound
from tempspec.plugins.lengths import ConfidenceThreshold, FixedLength
from tempspec.testing import check_length

NAMES = [plugin.name for plugin in registry.scan() if plugin.family == "lengths" and plugin.distribution == "tempspec"]


@pytest.mark.parametrize("name", NAMES)
def test_every_builtin_conforms(name):
    check_length(registry.get("lengths", name)())


@pytest.mark.parametrize(
    "rule", [FixedLength(0), FixedLength(9), ConfidenceThreshold(0.0), ConfidenceThreshold(1.0, longest=1)]
)
def test_conforms_at_the_ends_of_its_options(rule):
    check_length(rule)


def test_fixed_length_asks_for_no_look_at_tokens():
    first = torch.full((3,), -1)
    assert FixedLength(5).limit(LastRound(first, first, first)).tolist() == [5, 5, 5]
    assert FixedLength(5).proceed(first, torch.zeros(3, 2)) is None


def test_confidence_stops_behind_a_token_below_the_threshold():
    logq = torch.tensor([[0.39, 0.61], [0.41, 0.59], [0.0, 1.0]]).log()
    assert ConfidenceThreshold(0.4).proceed(torch.tensor([0, 0, 1]), logq).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedLength(-1), "tokens must be 0 or more, got -1"),
        (lambda: ConfidenceThreshold(1.5), r"threshold must be in \[0, 1\], got 1.5"),
        (lambda: ConfidenceThreshold(float("nan")), "threshold must be in"),
        (lambda: ConfidenceThreshold(longest=-2), "longest must be 0 or more, got -2"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
