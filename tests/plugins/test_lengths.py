import pytest
import torch

from tempspec.errors import UserError
from tempspec.interfaces import LastRound, StepTimes
from tempspec.plugins.lengths import SVIP, AdaEDL, ConfidenceThreshold, FixedLength, Goodput, Heuristic
from tempspec.testing import check_length
from tests.built_ins import built_in

LENGTHS = built_in("lengths")


@pytest.mark.parametrize("name", LENGTHS)
def test_every_builtin_conforms(name):
    check_length(LENGTHS[name]())


@pytest.mark.parametrize(
    "rule", [FixedLength(0), FixedLength(9), ConfidenceThreshold(0.0), ConfidenceThreshold(1.0, longest=1)]
)
def test_conforms_at_the_ends_of_its_options(rule):
    check_length(rule)


def last_round(limit, drafted, accepted):
    """A second round behind one with these counts."""
    limit, drafted, accepted = map(torch.tensor, (limit, drafted, accepted))
    return LastRound(limit, drafted, accepted, torch.minimum(accepted + 1, drafted), accepted)


FIRST = LastRound(*(torch.full((3,), value) for value in (-1, -1, -1, 0, 0)))


def test_fixed_length_asks_for_no_look_at_tokens():
    first = torch.full((3,), -1)
    assert FixedLength(5).limit(FIRST).tolist() == [5, 5, 5]
    assert FixedLength(5).proceed(first, torch.zeros(3, 2)) is None


def test_confidence_stops_behind_a_token_below_the_threshold():
    logq = torch.tensor([[0.39, 0.61], [0.41, 0.59], [0.0, 1.0]]).log()
    assert ConfidenceThreshold(0.4).proceed(torch.tensor([0, 0, 1]), logq).tolist() == [False, True, True]


def test_heuristic_follows_the_last_round():
    last = last_round([-1, 4, 4, 1, 7], [-1, 4, 4, 1, 7], [-1, 4, 3, 0, 7])
    assert Heuristic(first=5, longest=8).limit(last).tolist() == [5, 6, 3, 1, 8]


def test_entropy_rules_stop_behind_an_unsure_draft():
    logq = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01], [1.0, 0.0, 0.0, 0.0]]).log()
    token = torch.zeros(3, dtype=torch.int64)
    assert SVIP(threshold=1.0).proceed(token, logq).tolist() == [False, True, True]  # sqrt(log 4) = 1.18
    assert AdaEDL(coefficient=0.2, threshold=0.5).proceed(token, logq).tolist() == [False, True, True]  # 1 - .53
    assert AdaEDL(coefficient=0.2, threshold=0.4).proceed(token, logq).tolist() == [True, True, True]


@pytest.mark.parametrize("rule", [SVIP(threshold=0.0), AdaEDL(threshold=1.0), ConfidenceThreshold(1.0)])
def test_a_certain_draft_goes_on_at_the_strictest_threshold(rule):
    assert rule.proceed(torch.tensor([1]), torch.tensor([[0.0, 1.0]]).log()).tolist() == [True]


COSTS = [1.0, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35]


def test_adaedl_stops_earlier_where_less_was_accepted():
    last = last_round([8, 8, 8], [8, 8, 8], [0, 5, 8])
    low, middle, high = AdaEDL(threshold=0.3).thresholds(last).tolist()
    assert low > middle > high
    assert AdaEDL(threshold=0.3).thresholds(FIRST).tolist() == pytest.approx([0.3] * 3)
    assert AdaEDL(gain=0.0).thresholds(last).tolist() == pytest.approx([0.3] * 3)
    logq = torch.tensor([0.5, 0.3, 0.1, 0.1]).log().expand(3, 4)  # 1 - sqrt(c H) = .52
    rule = AdaEDL(threshold=0.52, gain=2.0).for_round(last)
    assert rule.proceed(torch.zeros(3, dtype=torch.int64), logq).tolist() == [False, True, True]


def test_goodput_goes_by_the_times_it_is_told():
    free = Goodput().timed(StepTimes(0.0, (2.0,) * 9))
    dear = Goodput().timed(StepTimes(9.0, (2.0,) * 9))
    assert Goodput().needs_step_times
    assert not free.needs_step_times
    assert (free.limit(FIRST).tolist(), dear.limit(FIRST).tolist()) == ([8] * 3, [0] * 3)
    told, given = Goodput(longest=3).timed(StepTimes(0.4, (2.0, 2.0, 2.5, 3.0))), Goodput(0.2, (1.0, 1.0, 1.25, 1.5))
    assert vars(told) == vars(given)
    check_length(told)


def test_goodput_drafts_more_where_accepted_none_where_no_gain():
    rates = (0.05, 0.3, 0.6, 0.9)
    limits = [Goodput(0.2, COSTS, acceptance=rate).limit(FIRST)[0].item() for rate in rates]
    assert limits == sorted(limits)
    assert limits[0] == 0 < limits[-1]
    goodput = [sum(0.6**i for i in range(k + 1)) / (0.2 * k + cost) for k, cost in enumerate(COSTS)]
    best = goodput.index(max(goodput))
    assert limits[2] == best


@pytest.mark.parametrize("rate", [k / 40 for k in range(1, 40)])
def test_goodput_assumes_a_small_draft_and_memory_bound_passes(rate):
    guess, told = Goodput(acceptance=rate, longest=8), Goodput(0.15, COSTS, acceptance=rate)
    assert torch.equal(guess.limit(FIRST), told.limit(FIRST))


def test_goodput_learns_from_the_last_round():
    last = last_round([8, 8], [8, 8], [0, 8])
    refused, accepted = Goodput(acceptance=0.6).limit(last).tolist()
    assert refused < accepted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedLength(-1), "tokens must be 0 or more, got -1"),
        (lambda: ConfidenceThreshold(1.5), r"threshold must be in \[0, 1\], got 1.5"),
        (lambda: ConfidenceThreshold(float("nan")), "threshold must be in"),
        (lambda: Heuristic(first=0), "expected 1 <= first <= longest, got 0 and 16"),
        (lambda: AdaEDL(coefficient=-1.0), "coefficient must be 0 or more"),
        (lambda: AdaEDL(longest=-1), "longest must be 0 or more"),
        (lambda: AdaEDL(goal=1.1), "goal must be in"),
        (lambda: AdaEDL(gain=-0.1), "gain must be 0 or more"),
        (lambda: SVIP(threshold=-1.0), "threshold must be 0 or more"),
        (lambda: SVIP(longest=-1), "longest must be 0 or more"),
        (lambda: Goodput(-0.1, COSTS), "draft_cost must be 0 or more"),
        (lambda: Goodput(0.1, []), "verify_costs must hold positive numbers"),
        (lambda: Goodput(0.1, [1.0, float("inf")]), "verify_costs must hold positive numbers"),
        (lambda: Goodput(draft_cost=0.1), "expected draft_cost and verify_costs, or neither"),
        (lambda: Goodput(longest=-1), "longest must be 0 or more"),
        (lambda: Goodput(acceptance=1.5), "acceptance must be in"),
        (lambda: Goodput(confidence=0.0), "confidence must be above 0"),
        (lambda: ConfidenceThreshold(longest=-2), "longest must be 0 or more, got -2"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
