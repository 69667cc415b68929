import os

import datasets
import pyarrow as pa

from tempspec.data import mapping
from tempspec.data.mapping import mapped


def doubled(batch, numbers):
    return pa.table({"number": list(numbers), "double": [2 * value for value in batch["value"]]})


def test_what_is_made_comes_in_the_order_of_the_rows():
    rows = datasets.Dataset.from_dict({"value": list(range(600))})
    for workers in (None, 1, 3):
        with mapped(rows, doubled, "doubling", workers) as made:
            assert made[:] == {"number": list(range(600)), "double": list(range(0, 1200, 2))}


def test_without_a_terminal_lines_say_how_far_it_is(monkeypatch):
    said = []
    monkeypatch.setattr(mapping, "rank_zero_info", said.append)
    monkeypatch.setattr(mapping, "_SECONDS", 0)
    rows = datasets.Dataset.from_dict({"value": list(range(512))})
    with mapped(rows, doubled, "doubling"):
        pass
    assert said == []  # a few rows are done at once
    monkeypatch.setattr(mapping, "_MANY", 500)
    with mapped(rows, doubled, "doubling", workers=1):
        pass
    assert said == ["doubling: 50%", "doubling: 100%"]


def test_nothing_is_left_on_disk_and_bars_are_as_before(tmp_path):
    rows = datasets.Dataset.from_dict({"value": [1]})
    before = datasets.are_progress_bars_disabled()
    with mapped(rows, doubled, "doubling", scratch=tmp_path):
        assert len(list(tmp_path.iterdir())) == 1
        assert datasets.are_progress_bars_disabled()
    assert list(tmp_path.iterdir()) == []
    assert datasets.are_progress_bars_disabled() == before


def test_several_processes_leave_the_environment_as_it_was():
    rows = datasets.Dataset.from_dict({"value": list(range(600))})
    before, held = os.environ, dict(os.environ)
    with mapped(rows, doubled, "doubling", workers=2):
        assert os.environ is before  # whoever holds it, as rich does, sees what is set from now on
        assert dict(os.environ) == held
