import math

import pytest
import torch

from tempspec.metrics.bootstrap import (
    FEWEST,
    Estimate,
    Sums,
    bootstrap_compute,
    bootstrap_update,
    contrast_estimate,
    difference_estimate,
    paired_quotient,
    replicate_weights,
    same_prompts,
    student_quantile,
)

# N observations, S entries, R replicates, U prompts


def clustered(prompts=60, tokens=15, seed=0):
    """Tokens of a prompt share their prompt's rate, so they are far from independent."""
    generator = torch.Generator().manual_seed(seed)
    rate_U = 0.2 + 0.6 * torch.rand(prompts, generator=generator, dtype=torch.float64)
    key_N = torch.arange(prompts).repeat_interleave(tokens) + 1000 * seed
    numerator_N = (torch.rand(prompts * tokens, generator=generator) < rate_U.repeat_interleave(tokens)).double()
    return numerator_N[:, None], torch.ones_like(numerator_N)[:, None], key_N


def bounds(sums):
    return bootstrap_compute(sums)[0, 1:3]


def test_weights_follow_poisson_of_one():
    weight_NR = replicate_weights(torch.arange(400), 1000)
    for count in range(6):
        expected = math.exp(-1) / math.factorial(count)
        spread = math.sqrt(expected * (1 - expected) / weight_NR.numel())
        assert abs((weight_NR == count).double().mean() - expected) < 4 * spread


def test_weights_of_prompts_and_replicates_are_uncorrelated():
    weight_NR = replicate_weights(torch.arange(300), 300)
    for matrix in (weight_NR, weight_NR.T):
        correlation = torch.corrcoef(matrix) - torch.eye(300)
        assert correlation.abs().max() < 6 / math.sqrt(300)


def test_weights_are_a_function_of_key_and_replicate_alone():
    key_N = torch.tensor([5, -(2**63), 2**63 - 1, 5])
    weight_NR = replicate_weights(key_N, 50)
    assert torch.equal(weight_NR[0], weight_NR[3])
    assert torch.equal(weight_NR[1:2], replicate_weights(key_N[1:2], 50))
    assert torch.equal(weight_NR[:, :20], replicate_weights(key_N, 20))


def test_interval_agrees_with_multinomial_and_normal_intervals():
    numerator_NS, denominator_NS, key_N = clustered(prompts=200)
    low, high = bounds(bootstrap_update(numerator_NS, denominator_NS, key_N, 4000))
    per_prompt_U = numerator_NS.view(200, -1).mean(1)

    drawn_RU = torch.randint(200, (4000, 200), generator=torch.Generator().manual_seed(1))
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    classic = per_prompt_U[drawn_RU].mean(1).quantile(tails)
    spread = 1.96 * per_prompt_U.std() / math.sqrt(200)
    normal = per_prompt_U.mean() + torch.stack([-spread, spread])

    # quantiles of 4000 replicates scatter by about 2% of the width, the normal approximation errs by as much
    for reference in (classic, normal):
        assert (torch.stack([low, high]) - reference).abs().max() < 0.06 * (high - low)
    token_spread = 1.96 * math.sqrt(0.25 / len(key_N))
    assert high - low > 1.2 * 2 * token_spread, "an interval over tokens would be far too narrow"


def rates(prompts, times, seed=0):
    """Sums of `times` metrics whose prompts have rates of their own, of .5 on the average."""
    generator = torch.Generator().manual_seed(seed)
    rate_NS = 0.2 + 0.6 * torch.rand(prompts, times, generator=generator, dtype=torch.float64)
    tested_NS = torch.randint(20, 60, rate_NS.shape, generator=generator).double()
    return bootstrap_update(torch.binomial(tested_NS, rate_NS, generator=generator), tested_NS, torch.arange(prompts))


@pytest.mark.parametrize("prompts", [6, 8, 12, 24, 60])
def test_interval_covers_the_truth_95_times_in_100(prompts):
    _, low_S, high_S, _ = bootstrap_compute(rates(prompts, 1500)).T
    covered = ((low_S <= 0.5) & (high_S >= 0.5)).double().mean()
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 1500) + 0.01


def test_intervals_that_hold_together_cover_95_times_in_100():
    """Where plain intervals, each right 95 times in 100, do so far less often."""
    candidates, times = 25, 300
    sums = rates(24, candidates * times)
    shares = []
    for among in (1, candidates):
        _, low_S, high_S, _ = contrast_estimate((1, sums), among=among).T
        shares.append(((low_S <= 0.5) & (high_S >= 0.5)).view(times, candidates).all(1).double().mean())
    assert shares[0] < 0.5
    assert abs(shares[1] - 0.95) < 3 * math.sqrt(0.95 * 0.05 / times) + 0.01


@pytest.mark.parametrize(
    ("tail", "freedom", "table"),
    [(0.025, 5, 2.5706), (0.0005, 5, 6.8688), (0.025, 23, 2.0687), (0.0005, 23, 3.7676), (0.001, 63, 3.2251)],
)
def test_students_quantiles_are_the_tables(tail, freedom, table):
    assert student_quantile(tail, freedom) == pytest.approx(table, rel=0.006)


def test_order_of_observations_means_nothing():
    numerator_NS, denominator_NS, key_N = clustered()
    order_N = torch.randperm(len(key_N), generator=torch.Generator().manual_seed(3))
    one = bootstrap_update(numerator_NS, denominator_NS, key_N, 100)
    other = bootstrap_update(numerator_NS[order_N], denominator_NS[order_N], key_N[order_N], 100)
    torch.testing.assert_close(bootstrap_compute(other), bootstrap_compute(one), rtol=0, atol=0)


@pytest.mark.parametrize("parts", [2, 7, 100])
def test_batches_add_up_even_when_they_split_a_prompt(parts):
    numerator_NS, denominator_NS, key_N = clustered()
    chunks = zip(numerator_NS.chunk(parts), denominator_NS.chunk(parts), key_N.chunk(parts), strict=True)
    first, *rest = (bootstrap_update(*chunk, 100) for chunk in chunks)
    merged = sum(rest, start=first)
    whole = bootstrap_update(numerator_NS, denominator_NS, key_N, 100)
    torch.testing.assert_close(bootstrap_compute(merged), bootstrap_compute(whole), rtol=0, atol=0)


def test_entries_are_independent_metrics_that_share_weights():
    numerator_NS, denominator_NS, key_N = clustered()
    both = bootstrap_update(torch.cat([numerator_NS, 1 - numerator_NS], 1), denominator_NS.expand(-1, 2), key_N, 100)
    alone = bootstrap_update(numerator_NS, denominator_NS, key_N, 100)
    torch.testing.assert_close(bootstrap_compute(both)[0], bootstrap_compute(alone)[0], rtol=0, atol=0)
    ratio_SW = both.numerator_SW / both.denominator_SW
    torch.testing.assert_close(ratio_SW.sum(0), torch.ones(101, dtype=torch.float64))


def test_a_pair_is_far_tighter_than_two_independent_intervals():
    numerator_NS, denominator_NS, key_N = clustered()
    a = bootstrap_update(numerator_NS, denominator_NS, key_N)
    b = bootstrap_update(numerator_NS + 0.1, denominator_NS, key_N)
    value, low, high, prompts = difference_estimate(b, a)[0].tolist()
    assert value == pytest.approx(0.1)
    assert high - low < 1e-12, "the same shift of every token leaves nothing uncertain"
    assert prompts == 60
    doubled = bootstrap_update(2 * numerator_NS, denominator_NS, key_N)
    assert bootstrap_compute(paired_quotient(doubled, a))[0].tolist() == pytest.approx([2, 2, 2, 60])


def test_pairs_need_the_same_prompts():
    a, b = (bootstrap_update(*clustered(prompts=prompts), 10) for prompts in (3, 4))
    assert not same_prompts(a, b)
    for pair in (difference_estimate, paired_quotient):
        with pytest.raises(ValueError, match=r"same prompts on both sides, got different sets \(3 and 4 prompts\)"):
            pair(a, b)


@pytest.mark.parametrize("count", [1, FEWEST - 1])
def test_few_prompts_have_a_value_but_no_interval(count):
    numerator_NS, denominator_NS, key_N = clustered(prompts=count)
    value, low, high, prompts = bootstrap_compute(bootstrap_update(numerator_NS, denominator_NS, key_N, 50))[0]
    assert value == numerator_NS.mean()
    assert low.isnan()
    assert high.isnan()
    assert prompts == count


def test_prompts_without_a_denominator_are_not_seen():
    sums = bootstrap_update(torch.zeros(3, 1), torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([1, 2, 3]), 50)
    value, low, _, prompts = bootstrap_compute(sums)[0]
    assert (value, prompts) == (0, 1)
    assert low.isnan()


def test_replicates_without_a_denominator_are_dropped():
    sums = bootstrap_update(torch.arange(6)[:, None], torch.ones(6, 1), torch.arange(6), 4000)
    assert (sums.denominator_SW == 0).any(), "with six prompts, e^-6 of the replicates are empty"
    value, low, high, prompts = bootstrap_compute(sums)[0].tolist()
    assert 0 <= low < value == 2.5 < high <= 5
    assert prompts == 6


def test_nothing_counted_is_nan():
    empty = bootstrap_update(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 10)
    found_S4 = bootstrap_compute(empty)
    assert found_S4.shape == (2, 4)
    assert found_S4[:, :3].isnan().all()
    assert (found_S4[:, 3] == 0).all()
    assert isinstance(empty + empty, Sums)


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.7132, 0.6904, 0.7351, ".713 [.690, .735]"),
        (0.9997, 0.999, 1.0, "1.000 [.999, 1.000]"),
        (1.0, 1.0, 1.0, "1.00 [1.00, 1.00]"),
        (2.449, 2.3, 2.61, "2.45 [2.30, 2.61]"),
        (12.34, 9.96, 15.0, "12.3 [10.0, 15.0]"),
        (312.4, 298.0, 1027.2, "312 [298, 1027]"),
        (-0.0121, -0.02, -0.00001, "-.012 [-.020, .000]"),
        (0.0, math.nan, math.nan, ".000"),
        (math.nan, math.nan, math.nan, "-"),
    ],
)
def test_estimates_print_three_digits(value, low, high, text):
    estimate = Estimate(value, low, high, prompts=5)
    assert str(estimate) == text
    assert estimate.to_dict().keys() == {"value", "low", "high", "prompts"}


def test_intervals_that_hold_together_contain_single_ones():
    generator = torch.Generator().manual_seed(0)
    sums = bootstrap_update(torch.rand(30, 1, generator=generator), torch.ones(30, 1), torch.arange(30))
    ends = [contrast_estimate((1, sums), among=count)[0, 1:3].tolist() for count in (1, 4, 16)]
    assert ends[2][0] < ends[1][0] < ends[0][0] < ends[0][1] < ends[1][1] < ends[2][1]
    assert ends[0] == bootstrap_compute(sums)[0, 1:3].tolist()
