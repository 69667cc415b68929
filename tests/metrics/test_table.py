import builtins
import math

import pytest
from rich.console import Console

from tempspec.errors import UserError
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.rows import Cell
from tempspec.metrics.table import Line, ResultTable, cells_table


def estimate(value):
    return Estimate(value, value - 0.1, value + 0.1, 9)


@pytest.fixture
def grid():
    pairs = [(target, draft) for target in (0.0, 1.0) for draft in (0.0, 1.0)]
    lines = [
        Line(
            {"set": "a", "draft_temperature": d, "target_temperature": t},
            {"acceptance": estimate(0.5 + t / 10 + d / 5)},
        )
        for t, d in pairs
    ]
    return ResultTable("acceptance", lines, across="target_temperature")


def test_rows_are_plain_and_a_data_frame_has_them(grid):
    assert list(grid) == grid.rows
    assert len(grid) == 4
    assert grid[3]["acceptance_low"] == grid.rows[3]["acceptance"] - 0.1
    frame = grid.to_pandas()
    assert frame.to_dict("records") == grid.rows


def test_without_pandas_one_line_says_so(grid, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="to_pandas needs pandas, got none"):
        grid.to_pandas()


def test_a_label_may_be_printed_across(grid):
    heading, _, *lines = str(grid).split("\n")[1:]
    assert heading.split() == ["set", "T", "draft", "T", "0", "T", "1"]
    assert [line.split()[:2] for line in lines] == [["a", "0"], ["a", "1"]]
    assert ".800 [.700, .900]" in lines[1]
    assert repr(grid) == str(grid)


def test_one_row_is_chosen_by_its_labels(grid):
    assert grid.one(target_temperature=1.0, draft_temperature=0.0)["acceptance"] == 0.6
    with pytest.raises(UserError, match=r"expected one row with .* got 2: choose by set, draft_temperature"):
        grid.one(target_temperature=1.0)


def test_a_sweeps_table_prints_a_few_metrics_and_has_all():
    cell = Cell("block", "chat", 1.0, 1.0)
    found = {"acceptance_rate": estimate(0.5), "mbsu": estimate(0.9), "speedup": Estimate.nothing()}
    table = cells_table("decoding", {cell: found})
    assert table.one()["mbsu"] == 0.9
    assert math.isnan(table.one()["speedup"])
    assert "category" not in table.one()
    assert "mbsu" not in str(table)
    narrow = Console(width=40, record=True)
    narrow.print(table)
    assert "block" in narrow.export_text()
