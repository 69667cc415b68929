"""Every definition against a plain reference on random rows: alone, in batches, merged, pickled, in half precision."""

import copy
import math
import pickle
import random
from itertools import accumulate

import pytest
import torch

from tempspec.decoding.rounds import append_round
from tempspec.decoding.slots import ActiveRow
from tempspec.interfaces import BASELINE, Completion, Request
from tempspec.metrics.bootstrap import FEWEST, replicate_weights
from tempspec.metrics.by_position import AcceptedLengthHistogram, ConditionalAcceptance, JointAcceptance
from tempspec.metrics.collection import DecodingMetrics, SweepMetrics, compare
from tempspec.metrics.decoding import (
    MBSU,
    AcceptanceRate,
    AcceptedLength,
    AnalyticAcceptance,
    BlockEfficiency,
    DraftAcceptance,
    ForeseenLength,
    KLFromTarget,
    OptimalAcceptance,
    OverheadShare,
    TokensPerSecond,
    TotalVariationFromTarget,
    speedup,
)
from tempspec.metrics.rows import Cell, cell_of

COUNTS = ("drafted", "tested", "accepted")
K = 4  # the longest round of the rows fixture


def rounds(rows):
    """(drafted, accepted) of every round of every row."""
    return [pair for row in rows for pair in zip(row["drafted"], row["accepted"], strict=True)]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def outcomes(drafted, accepted):
    """The draft tokens of a round that were looked at, in order: True accepted, False rejected."""
    return [True] * accepted + [False] * (accepted < drafted)


def reference_conditional(rows):
    seen = [outcomes(*pair) for pair in rounds(rows)]
    return [mean(round_[i] for round_ in seen if len(round_) > i) for i in range(K)]


def reference_mbsu(rows):
    length = mean(drafted for drafted, _ in rounds(rows))
    return mean_tokens_per_round(rows) / (0.1 * length + 1)


def per_tested(rows, name):
    return sum(sum(row[name]) for row in rows) / sum(len(outcomes(*pair)) for pair in rounds(rows))


def mean_tokens_per_round(rows):
    return sum(len(row["tokens"]) for row in rows) / len(rounds(rows))


def seconds(row):
    return sum(row[f"seconds_{part}"] for part in ("prefill", "draft", "verify", "overhead"))


MATRIX = {
    "acceptance_rate": (
        lambda **kw: AcceptanceRate(**kw),
        lambda rows: mean(coin for pair in rounds(rows) for coin in outcomes(*pair)),
    ),
    "analytic": (
        lambda **kw: AnalyticAcceptance(**kw),
        lambda rows: per_tested(rows, "expected"),
    ),
    "draft_acceptance": (
        lambda **kw: DraftAcceptance(**kw),
        lambda rows: mean(i < accepted for drafted, accepted in rounds(rows) for i in range(drafted)),
    ),
    "accepted_length": (
        lambda **kw: AcceptedLength(**kw),
        lambda rows: mean(accepted for _, accepted in rounds(rows)),
    ),
    "foreseen_length": (
        lambda **kw: ForeseenLength(**kw),
        lambda rows: mean(value for row in rows for value in row["foreseen"]),
    ),
    "optimum": (lambda **kw: OptimalAcceptance(**kw), lambda rows: per_tested(rows, "optimum")),
    "total_variation": (
        lambda **kw: TotalVariationFromTarget(**kw),
        lambda rows: per_tested(rows, "total_variation"),
    ),
    "kl": (lambda **kw: KLFromTarget(**kw), lambda rows: per_tested(rows, "kl")),
    "block_efficiency": (lambda **kw: BlockEfficiency(**kw), mean_tokens_per_round),
    "mbsu": (lambda **kw: MBSU(0.1, **kw), reference_mbsu),
    "conditional": (lambda **kw: ConditionalAcceptance(K, **kw), reference_conditional),
    "joint": (
        lambda **kw: JointAcceptance(K, **kw),
        lambda rows: list(accumulate(reference_conditional(rows), lambda a, b: a and a * b)),
    ),
    "histogram": (
        lambda **kw: AcceptedLengthHistogram(K, **kw),
        lambda rows: [mean(accepted == length for _, accepted in rounds(rows)) for length in range(K + 1)],
    ),
    "tokens_per_second": (
        lambda **kw: TokensPerSecond(**kw),
        lambda rows: sum(len(row["tokens"]) for row in rows) / sum(map(seconds, rows)),
    ),
    "overhead_share": (
        lambda **kw: OverheadShare(**kw),
        lambda rows: sum(row["seconds_overhead"] for row in rows) / sum(map(seconds, rows)),
    ),
}

matrix = pytest.mark.parametrize(("make", "reference"), MATRIX.values(), ids=MATRIX)


def fed(metric, rows):
    for row in rows:
        metric.update(row)
    return metric


@matrix
def test_value_is_the_definition(make, reference, rows):
    found = [estimate.value for estimate in fed(make(replicates=50), rows).estimates()]
    expected = reference(rows)
    assert found == pytest.approx(expected if isinstance(expected, list) else [expected], abs=1e-12, nan_ok=True)


@matrix
def test_interval_is_the_definition_on_resampled_prompts(make, reference, rows):
    """Repeating each prompt's rows by its weight, and measuring, gives the replicate."""
    replicates = 5
    sums = fed(make(replicates=replicates), rows).sums()
    for replicate in range(replicates):
        weights = replicate_weights(torch.tensor([row["prompt_key"] for row in rows]), replicates)[:, replicate]
        resampled = [row for row, weight in zip(rows, weights.int().tolist(), strict=True) for _ in range(weight)]
        expected = torch.tensor(reference(resampled), dtype=torch.float64).reshape(-1)
        found = (sums.numerator_SW / sums.denominator_SW)[:, 1 + replicate]
        torch.testing.assert_close(found, expected, equal_nan=True)


@matrix
def test_two_ranks_merge_to_one(make, reference, rows):
    whole = fed(make(replicates=50), rows)
    one, other = fed(make(replicates=50), rows[::2]), fed(make(replicates=50), rows[1::2])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), whole.compute(), equal_nan=True)


@matrix
def test_forward_pickle_copy_and_reset(make, reference, rows):
    whole = fed(make(replicates=50), rows).compute()
    metric = make(replicates=50)
    for row in rows[:20]:
        metric(row)
    metric = copy.deepcopy(pickle.loads(pickle.dumps(metric)))
    torch.testing.assert_close(fed(metric, rows[20:]).compute(), whole, equal_nan=True)
    metric.reset()
    torch.testing.assert_close(fed(metric, rows).compute(), whole, equal_nan=True)


@matrix
def test_sums_stay_float64_when_the_module_is_halved(make, reference, rows):
    metric = make(replicates=10).to(torch.bfloat16)
    assert fed(metric, rows).sums().numerator_SW.dtype == torch.float64
    assert metric.sums().seen_M2.dtype == torch.int64


def test_rates_order_as_defined(rows):
    metrics = DecodingMetrics(K, 0.1, replicates=10)
    fed(metrics, rows)
    found = {name: estimate.value for name, estimate in metrics.estimates().items()}
    assert found["draft_acceptance"] <= found["acceptance_rate"]
    assert found["mbsu"] < found["block_efficiency"]
    assert found["block_efficiency"] == pytest.approx(1 + found["accepted_length"])
    assert sum(found[f"accepted_length_share_{length}"] for length in range(K + 1)) == pytest.approx(1)
    shares = [length * found[f"accepted_length_share_{length}"] for length in range(K + 1)]
    assert sum(shares) == pytest.approx(found["accepted_length"])
    assert found["joint_acceptance_1"] == found["conditional_acceptance_1"]
    assert found["acceptance_gap"] == pytest.approx(found["acceptance_rate"] - found["analytic_acceptance"])


def test_joint_acceptance_is_not_biased_by_accepted_stops():
    """With acceptance .8 everywhere and a stop in 1 of 20 tokens; of the rounds that drafted four, .388 accept them."""
    generator, rows = random.Random(3), []
    for prompt in range(1500):
        completion = Completion(request := Request((1,), stop_ids=frozenset([0]), max_new_tokens=10**6))
        flight = ActiveRow(request, completion, 1, 10**6, 0)
        while completion.finish == "length":
            accepted = next((place for place in range(K) if generator.random() > 0.8), K)
            emitted = [int(generator.random() > 0.05) for _ in range(accepted + 1)]
            append_round(flight, emitted, K, min(accepted + 1, K))
        rows.append({"prompt_key": prompt, **{name: getattr(completion, name) for name in COUNTS}})
    joint = JointAcceptance(K)
    joint.update(*rows)
    for place, estimate in enumerate(joint.estimates(), start=1):
        assert estimate.low < 0.8**place < estimate.high
        assert estimate.value == pytest.approx(0.8**place, abs=0.012)
    drafted = [(count, most) for row in rows for count, most in zip(row["accepted"], row["drafted"], strict=True)]
    assert mean(count == K for count, most in drafted if most == K) == pytest.approx(0.388, abs=0.01)


def test_nothing_is_accepted_behind_a_position_that_never_is():
    metric = JointAcceptance(3, replicates=50)
    for prompt in range(8):
        metric.update({"prompt_key": prompt, "drafted": [3, 3], "tested": [1, 2], "accepted": [0, 1]})
    assert [estimate.value for estimate in metric.estimates()] == [0.5, 0.0, 0.0]
    low, high = metric.compute()[2, 1:3].tolist()
    assert math.isnan(low)
    assert math.isnan(high)  # nobody has tested it


def test_rows_without_expectations_have_no_analytic_twin(rows):
    metrics = fed(DecodingMetrics(K, replicates=10), [row | {"expected": []} for row in rows])
    assert math.isnan(metrics.estimates()["analytic_acceptance"].value)
    assert math.isnan(metrics.estimates()["acceptance_gap"].value)
    assert "mbsu" not in metrics.estimates()


def test_longer_rounds_than_declared_are_refused(rows):
    with pytest.raises(ValueError, match="expected rounds of at most 2 drafted tokens, got 4"):
        fed(JointAcceptance(2, replicates=10), rows)


# ---------------------------------------------------------------------------------------------------------------------
# A sweep
# ---------------------------------------------------------------------------------------------------------------------


def make_sweep(rows):
    return fed(SweepMetrics(map(cell_of, rows), longest=K, replicates=50), rows)


def test_cells_hold_their_own_rows(sweep_rows):
    sweep = make_sweep(sweep_rows)
    assert len(sweep.cells) == 8
    estimates = sweep.estimates()
    for cell in sweep.cells:
        own = [row for row in sweep_rows if cell_of(row) == cell]
        acceptance = [row for row in own if row["pass"] == "acceptance"]
        timing = [row for row in own if row["pass"] == "timing"]
        assert estimates[cell]["block_efficiency"].value == pytest.approx(mean_tokens_per_round(acceptance))
        expected = MATRIX["tokens_per_second"][1](timing)
        assert estimates[cell]["tokens_per_second"].value == pytest.approx(expected)
        share = MATRIX["overhead_share"][1](timing)
        assert estimates[cell]["overhead_share"].value == pytest.approx(share)


def test_speedup_is_against_plain_decoding_of_the_same_set_and_temperature(sweep_rows):
    sweep = make_sweep(sweep_rows)
    fast, plain = Cell("block", "prose", 1.0, 1.0), Cell(BASELINE, "prose", 1.0, 1.0)
    assert sweep.baseline_of(fast) == plain
    found = sweep.estimates()
    ratio = found[fast]["tokens_per_second"].value / found[plain]["tokens_per_second"].value
    assert found[fast]["speedup"].value == pytest.approx(ratio)
    assert found[fast]["speedup"] == speedup(sweep[fast].tokens_per_second, sweep[plain].tokens_per_second)
    assert "speedup" not in found[plain]


def test_speedup_needs_the_same_prompts(sweep_rows):
    short = [row for row in sweep_rows if row["verifier"] != BASELINE or row["prompt_index"] > 0]
    assert all("speedup" not in found for found in make_sweep(short).estimates().values())


def test_plain_decoding_emits_one_token_a_call(sweep_rows):
    found = make_sweep(sweep_rows).estimates()[Cell(BASELINE, "code", 0.0, 0.0)]
    assert found["block_efficiency"].value == 1
    assert math.isnan(found["acceptance_rate"].value)


def test_undeclared_cells_are_refused(sweep_rows):
    with pytest.raises(ValueError, match="one of the 1 declared cells, got Cell"):
        fed(SweepMetrics([cell_of(sweep_rows[0])], longest=K, replicates=10), sweep_rows)


def test_comparing_a_sweep_with_itself_shows_no_difference(sweep_rows):
    sweep = make_sweep(sweep_rows)
    for differences in compare(sweep, sweep).values():
        for estimate in differences.values():
            if estimate.prompts >= FEWEST:
                assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)
            else:
                assert estimate.value == 0 or not estimate.prompts


def test_comparison_is_after_minus_before(sweep_rows):
    better = [row | {"tokens": row["tokens"] * 2} for row in sweep_rows]
    differences = compare(make_sweep(sweep_rows), make_sweep(better))[Cell("block", "code", 1.0, 1.0)]
    before = make_sweep(sweep_rows).estimates()[Cell("block", "code", 1.0, 1.0)]
    assert differences["block_efficiency"].value == pytest.approx(before["block_efficiency"].value)
    assert {"speedup", "accepted_length"} <= differences.keys()


def test_comparison_of_different_prompts_is_nothing(sweep_rows):
    fewer = [row for row in sweep_rows if row["prompt_index"] > 0]
    differences = compare(make_sweep(sweep_rows), make_sweep(fewer))[Cell("block", "code", 1.0, 1.0)]
    assert math.isnan(differences["block_efficiency"].value)
