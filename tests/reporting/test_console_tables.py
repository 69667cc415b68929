import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from tempspec.interfaces import BASELINE
from tempspec.metrics.acceptance_grid import GridEstimates
from tempspec.metrics.bootstrap import Estimate
from tempspec.reporting.console_tables import ComparisonTable, DecodingTable, category_tables, validation_table

WORDS = {"acceptance", "rate", "accepted", "length", "block", "efficiency", "tokens/s", "speed-up"}


def rendered(table, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def comparison(first, second):
    differences = {
        cell: {name: Estimate(0.1, 0.05, 0.15, 24) for name in metrics}
        for cell, metrics in first.items()
        if cell.verifier != BASELINE
    }
    return ComparisonTable({"undistilled": first, "distilled": second}, differences)


@pytest.mark.parametrize("width", [54, 62, 80, 100, 120, 200])
@pytest.mark.parametrize("make", [DecodingTable, lambda estimates: comparison(estimates, estimates)])
def test_nothing_is_cut_or_too_wide(make, estimates, width):
    if make is not DecodingTable and width < 65:
        width = 65  # the column that names the runs needs its room
    text = rendered(make(estimates), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert WORDS <= set(text.split())
    assert ".650" in text.split()


@pytest.mark.parametrize("width", [54, 62, 80, 100, 120, 200])
def test_a_lossy_rule_brings_its_distance_whatever_the_room(estimates, width):
    nothing = {"total_variation_from_target": Estimate.nothing(), "kl_from_target": Estimate.nothing()}
    assert "KL" not in rendered(DecodingTable({cell: found | nothing for cell, found in estimates.items()}), width)
    far = {
        "total_variation_from_target": Estimate(0.123, 0.1, 0.15, 24),
        "kl_from_target": Estimate(math.nan, math.nan, math.nan, 24),
    }
    lossy = {replace(cell, verifier="Ensemble"): found | far for cell, found in estimates.items()}
    text = rendered(DecodingTable(estimates | lossy), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert {"TV", "KL", ".123", "acceptance", "speed-up"} <= set(text.split())


def test_the_caption_states_what_ran_outside_the_models(estimates):
    assert "10% to 13% of its seconds outside the models' forward passes" in rendered(DecodingTable(estimates), 200)
    untimed = {cell: {k: v for k, v in found.items() if k != "overhead_share"} for cell, found in estimates.items()}
    assert "outside the models" not in rendered(DecodingTable(untimed), 200)


@pytest.mark.parametrize(
    ("width", "beside", "below"), [(120, True, True), (100, False, True), (80, False, True), (54, False, False)]
)
def test_intervals_stand_beside_then_below_then_nowhere(estimates, width, beside, below):
    text = rendered(DecodingTable(estimates), width)
    assert (".650 [.620, .680]" in text) == beside
    assert ("[.620, .680]" in text) == below


def test_each_verifier_and_set_has_a_section_in_order(estimates):
    lines = rendered(DecodingTable(estimates), 120).splitlines()
    titles = [line.strip() for line in lines if "domain" in line]
    assert titles == ["TokenwiseRejection, in-domain", "TokenwiseRejection, out-of-domain"]  # plain decoding has none
    assert "over 24 prompts, speed over 4" in lines[-1]


def test_draft_temperature_is_shown_where_it_differs(estimates):
    fixed = {replace(cell, draft_temperature=0.0): metrics for cell, metrics in estimates.items()}
    assert "T draft" not in rendered(DecodingTable(estimates), 120)
    assert "T draft" in rendered(DecodingTable(fixed), 140)


def test_comparison_shows_both_runs_and_signed_differences(estimates):
    text = rendered(comparison(estimates, estimates), 120)
    assert text.count("undistilled") == text.count("difference ") == 8
    assert "+.100" in text
    assert BASELINE not in text
    assert "differences are paired" in text


def test_comparison_needs_two_runs(estimates):
    with pytest.raises(ValueError, match="expected two runs to compare, got 1: only"):
        ComparisonTable({"only": estimates}, {})


def test_timing_batch_is_named(estimates):
    assert "batch 7" in rendered(DecodingTable(estimates, batch=7), 120)


def test_each_timing_batch_has_columns_of_its_own(estimates):
    both = {
        cell: found
        | {"tokens_per_second_at_8": Estimate(901.0, 890.0, 912.0, 8), "speedup_at_8": Estimate(1.17, 1.1, 1.2, 8)}
        for cell, found in estimates.items()
    }
    shown = rendered(DecodingTable(both), 200)
    assert all(part in shown for part in ("batch 1", "batch 8", "901", "1.17"))
    only = {
        cell: {name: e for name, e in found.items() if name not in ("tokens_per_second", "speedup")}
        for cell, found in both.items()
    }
    shown = rendered(DecodingTable(only), 200)
    assert "batch 1" not in shown
    assert "1.17" in shown


def test_empty_run_has_an_empty_table():
    assert rendered(DecodingTable({}), 80).strip() == ""


@pytest.fixture
def grid():
    temperatures = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    row = dict.fromkeys(temperatures, Estimate(0.5, 0.4, 0.6, 9))
    acceptance = {(a, b): Estimate(0.8 - 0.2 * abs(a - b), 0.7, 0.82, 9) for a in temperatures for b in temperatures}
    return GridEstimates(temperatures, temperatures, acceptance, row, row, row)


def test_validation_table_fits_80_columns_uncut(grid):
    text = rendered(validation_table(grid, title="in-domain"), 80)
    assert "…" not in text
    assert {"argmax", "sampled", "entropy,", "0.75", "1.25"} <= set(text.split())
    assert "9 prompts; 95% intervals at most ±0.060" in text


def test_best_draft_temperature_is_bold(grid):
    table = validation_table(grid, title="in-domain")
    for column in range(7):
        cells = list(table.columns[1 + column].cells)[:7]
        assert [bool(cell.style) for cell in cells] == [row == column for row in range(7)]


def test_categories_are_lines_and_temperatures_columns(estimates):
    parts = {
        replace(cell, category=category): found for cell, found in estimates.items() for category in ("writing", "math")
    }
    tables = category_tables(parts)
    assert len(tables) == 2  # one for each prompt set, none for plain decoding
    lines = rendered(tables[0], 80).splitlines()
    assert lines[0].split() == "TokenwiseRejection, in-domain: block efficiency by category".split()
    assert lines[1].split() == ["category", *(word for t in ("0", "0.5", "1", "1.5") for word in ("T", "=", t))]
    assert [line.split()[0] for line in lines if "3.34" in line] == ["writing", "math"]


def test_a_blank_line_follows_the_table_of_categories(estimates):
    parts = {replace(cell, category="math"): found for cell, found in estimates.items()}
    assert rendered(category_tables(parts)[0], 80).splitlines()[-1].strip() == ""


@pytest.mark.parametrize("width", [80, 120])
def test_a_comparison_of_three_columns_has_a_line_for_each_draft(estimates, width):
    one = {cell: found for cell, found in estimates.items() if cell.prompt_set == "in-domain"}
    differences = {cell: found for cell, found in one.items() if cell.verifier != BASELINE}
    shown = ("acceptance_rate", "block_efficiency", "speedup")
    table = ComparisonTable({"before": one, "distilled": one}, differences, metrics=shown)
    lines = rendered(table, width).splitlines()
    assert max(map(len, lines)) <= width
    assert [line.split()[-1] for line in lines if "difference" in line and "paired" not in line] == ["+1.30"] * 4
    assert len([line for line in lines if line.count("[") == 2]) == 12
    assert "analytic" not in " ".join(lines)


def with_argmax_drafts(estimates):
    """By category, sampled at the target's temperature and argmax: eight pairs of temperatures."""
    return {
        replace(cell, category=category, draft_temperature=draft): found
        for cell, found in estimates.items()
        for category in ("writing", "math")
        for draft in {0.0, cell.target_temperature}
    }


@pytest.mark.parametrize(("width", "intervals"), [(80, False), (120, True)])
def test_a_category_column_has_two_lines_of_labels(estimates, width, intervals):
    lines = rendered(category_tables(with_argmax_drafts(estimates))[0], width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[1].split() == ["T", "=", "0", *(word for t in ("0.5", "1", "1.5") for word in ("T", "=", t) * 2)]
    assert lines[2].split()[:3] == ["category", "draft", "0"]
    assert "…" not in "".join(lines)
    assert any("[3.10, 3.60]" in line for line in lines) == intervals
    assert sum("3.34" in line for line in lines) == 2


def test_the_corner_of_validation_names_both_directions(grid):
    head = rendered(validation_table(grid, title="in-domain"), 80).splitlines()[1:3]
    assert head[0].split()[:3] == ["target", "T", "→"]
    assert head[1].split() == ["draft", "T", "↓", "0", "0.25", "0.5", "0.75", "1", "1.25", "1.5"]
