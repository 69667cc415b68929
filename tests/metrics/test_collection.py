"""All metrics of a cell, all cells of a sweep, and two sweeps compared."""

import math

import pytest

from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import FEWEST
from tempspec.metrics.collection import DecodingMetrics, SweepMetrics, compare
from tempspec.metrics.decoding import speedup
from tempspec.metrics.rows import Cell, cell_of
from tests.metrics.definitions import K, fed, mean_tokens_per_round, overhead_share, tokens_per_second


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


def test_rows_without_expectations_have_no_analytic_twin(rows):
    metrics = fed(DecodingMetrics(K, replicates=10), [row | {"expected_acceptance": []} for row in rows])
    assert math.isnan(metrics.estimates()["analytic_acceptance"].value)
    assert math.isnan(metrics.estimates()["acceptance_gap"].value)
    assert "mbsu" not in metrics.estimates()


def test_each_metric_keeps_its_place_in_summaries(rows):
    """The order of `summary.csv`'s columns, which is public."""
    timed = [row | {"pass": "timing", "timing_slots": slots} for row in rows for slots in (1, 8)]
    metrics = DecodingMetrics(1, 0.1, replicates=10, timing_slots=(1, 8))
    metrics.update(*timed, *(row | {"drafted": [1], "tested": [1], "accepted": [1]} for row in rows))
    assert list(metrics.estimates()) == [
        *("acceptance_rate", "analytic_acceptance", "draft_acceptance", "accepted_length", "expected_length"),
        *("block_efficiency", "optimal_acceptance", "total_variation_from_target", "kl_from_target", "mbsu"),
        *("tokens_per_second", "overhead_share", "tokens_per_second_at_8", "overhead_share_at_8", "acceptance_gap"),
        *("conditional_acceptance_1", "joint_acceptance_1", "accepted_length_share_0", "accepted_length_share_1"),
    ]
    assert metrics.tokens_per_second.estimate() == metrics.timed("tokens_per_second", 8).estimate()


def test_timing_at_an_undeclared_batch_size_is_refused(rows):
    metrics = DecodingMetrics(K, replicates=10, timing_slots=(1,))
    with pytest.raises(AttributeError, match="tokens_per_second_at_8"):
        metrics.update(rows[0] | {"pass": "timing", "timing_slots": 8})


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
        expected = tokens_per_second(timing)
        assert estimates[cell]["tokens_per_second"].value == pytest.approx(expected)
        share = overhead_share(timing)
        assert estimates[cell]["overhead_share"].value == pytest.approx(share)


def test_speedup_is_against_plain_decoding_of_the_same_cell(sweep_rows):
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


def timed_where(rows, place):
    return [row | {"timed_in": "Monday", "timed_on": "CPU"} | place(row) for row in rows]


@pytest.mark.parametrize(
    "place",
    [
        lambda row: {"timed_on": "GPU" if row["verifier"] == BASELINE else "CPU"},
        lambda row: {"timed_on": "GPU" if row["verifier"] == BASELINE and row["prompt_index"] == 3 else "CPU"},
        lambda row: {} if row["verifier"] != BASELINE else {"timed_on": None, "timed_in": None},
    ],
)
def test_speedup_needs_the_same_machine(sweep_rows, place):
    sweep = SweepMetrics.of_rows(timed_where(sweep_rows, place))
    assert all("speedup" not in found for found in sweep.estimates().values())
    (note,) = sweep.places.notes()
    assert note.startswith("timed on 2 machines (CPU; ")


def test_prompts_of_two_machines_are_paired_each_on_its_own(sweep_rows):
    half = timed_where(sweep_rows, lambda row: {"timed_on": "GPU" if row["prompt_index"] % 2 else "CPU"})
    before, after = (SweepMetrics.of_rows(rows) for rows in (sweep_rows, half))
    assert any("speedup" in found for found in before.estimates().values())
    assert repr(after.estimates()) == repr(before.estimates())
    assert before.places.notes() == []
    assert len(after.places.notes()) == 1


def test_speedup_over_another_day_is_told(sweep_rows):
    later = timed_where(sweep_rows, lambda row: {"timed_in": "Monday" if row["verifier"] == BASELINE else "Friday"})
    sweep = SweepMetrics.of_rows(later)
    assert any("speedup" in found for found in sweep.estimates().values())
    (note,) = sweep.places.notes()
    assert "different sessions (begun Friday, Monday)" in note
    days = timed_where(sweep_rows, lambda row: {"timed_in": str(row["prompt_index"] % 2)})
    assert SweepMetrics.of_rows(days).places.notes() == []


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
