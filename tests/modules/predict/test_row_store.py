import hashlib
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tempspec.errors import UserError
from tempspec.modules.predict import row_store as module
from tempspec.modules.predict.row_store import RowStore
from tempspec.modules.predict.row_writer import RowWriter

ORIGIN = {"target": "a", "seed": "1"}


def rows(*keys):
    return [{"key": key, "tokens": [1, 2], "empty": []} for key in keys]


def test_rows_come_back_once_each_in_the_order_asked_for(tmp_path):
    store = RowStore(tmp_path, "rows", ORIGIN)
    store.append(rows("b", "c"))
    store.append(rows("a", "b"))
    assert {row["key"] for row in store.rows()} == {"a", "b", "c"}
    store.finish(["a", "b", "c"])
    assert [row["key"] for row in store.rows()] == ["a", "b", "c"]
    assert store.path.exists()
    assert not (tmp_path / "rows.parts").exists()


def test_a_new_store_continues_where_the_old_one_stopped(tmp_path):
    RowStore(tmp_path, "rows", ORIGIN).append(rows("a"))
    again = RowStore(tmp_path, "rows", ORIGIN)
    again.append(rows("b"))
    assert [row["key"] for row in again.rows()] == ["a", "b"]


def test_a_finished_store_can_grow(tmp_path):
    store = RowStore(tmp_path, "rows", ORIGIN)
    store.append(rows("a"))
    store.finish(["a"])
    store.append(rows("b"))
    store.finish(["a", "b"])
    assert [row["key"] for row in store.rows()] == ["a", "b"]


def test_ranks_write_parts_of_their_own(tmp_path):
    stores = [RowStore(tmp_path, "rows", ORIGIN, rank) for rank in range(2)]
    for store, key in zip(stores, "ab", strict=True):
        store.append(rows(key))
    assert {row["key"] for row in stores[0].rows()} == {"a", "b"}


def test_a_half_written_part_is_never_read(tmp_path):
    store = RowStore(tmp_path, "rows", ORIGIN)
    store.append(rows("a"))
    (part,) = (tmp_path / "rows.parts").iterdir()
    (tmp_path / "rows.parts" / "0000-000001.parquet.tmp").write_bytes(part.read_bytes()[:50])
    assert [row["key"] for row in store.rows()] == ["a"]


def test_a_stop_between_merging_and_tidying_loses_no_row(tmp_path):
    store = RowStore(tmp_path, "rows", ORIGIN)
    store.append(rows("a", "b"))
    parts = {part.name: part.read_bytes() for part in (tmp_path / "rows.parts").iterdir()}
    store.finish(["a", "b"])
    (tmp_path / "rows.parts").mkdir()
    for name, content in parts.items():
        (tmp_path / "rows.parts" / name).write_bytes(content)
    again = RowStore(tmp_path, "rows", ORIGIN)
    again.finish(["a", "b"])
    assert [row["key"] for row in again.rows()] == ["a", "b"]


def test_rows_of_another_origin_are_refused_by_name(tmp_path):
    RowStore(tmp_path, "rows", ORIGIN).append(rows("a"))
    with pytest.raises(UserError, match=r"changed: seed\)"):
        RowStore(tmp_path, "rows", ORIGIN | {"seed": "2"})


def test_what_was_not_there_before_may_join(tmp_path):
    RowStore(tmp_path, "rows", ORIGIN).append(rows("a"))
    RowStore(tmp_path, "rows", ORIGIN | {"verifier block": "x"})
    assert json.loads((tmp_path / "rows.origin.json").read_text()) == ORIGIN | {"verifier block": "x"}


def test_an_origin_without_rows_binds_nobody(tmp_path):
    RowStore(tmp_path, "rows", ORIGIN)
    other = RowStore(tmp_path, "rows", ORIGIN | {"seed": "2"})
    other.append(rows("a"))
    assert [row["key"] for row in other.rows()] == ["a"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        RowStore(tmp_path / "file" / "run", "rows", ORIGIN)


def test_rows_of_other_sweeps_stay_behind_those_asked_for(tmp_path):
    store = RowStore(tmp_path, "rows", ORIGIN)
    store.append(rows("a", "b", "c"))
    store.finish(["b"])
    store.append(rows("d"))
    store.finish(["d", "c"])
    assert [row["key"] for row in store.rows()] == ["d", "c", "b", "a"]
    assert [row["key"] for row in store.rows(["a", "none", "d"])] == ["a", "d"]


def test_rows_of_a_sweep_that_did_not_end_wait_for_it(tmp_path):
    RowStore(tmp_path, "rows", ORIGIN).append(rows("a1", "a2"))  # and is stopped
    store = RowStore(tmp_path, "rows", ORIGIN)
    store.append(rows("b"))
    store.finish(["b"])
    assert pq.read_table(store.path)["key"].to_pylist() == ["b"]
    assert store.finished == 1
    again = RowStore(tmp_path, "rows", ORIGIN)
    assert again.keys() == ["b", "a1", "a2"]
    again.append(rows("a3"))
    again.finish(["a1", "a2", "a3"])
    assert pq.read_table(store.path)["key"].to_pylist() == ["a1", "a2", "a3", "b"]
    assert not (tmp_path / "rows.parts").exists()


def test_a_parts_number_is_one_more_than_the_largest(tmp_path):
    store = RowStore(tmp_path, "rows", ORIGIN)
    for key in "abc":
        store.append(rows(key))
    (tmp_path / "rows.parts/0000-000000.parquet").unlink()
    store.append(rows("d"))
    assert sorted(store.keys()) == ["b", "c", "d"]


def test_parts_of_other_columns_and_types_are_merged(tmp_path):
    store = RowStore(tmp_path, "rows", ORIGIN)
    store.append([{"key": "a", "expected": [], "old": 1}])
    store.append([{"key": "b", "expected": [0.5], "new": "x"}])
    store.finish(["b", "a"])
    assert store.rows() == [
        {"key": "b", "expected": [0.5], "old": None, "new": "x"},
        {"key": "a", "expected": [], "old": 1, "new": None},
    ]


def test_many_rows_are_merged_in_order_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP", 3)
    store, keys = RowStore(tmp_path, "rows", ORIGIN), [f"k{number:02}" for number in range(20)]
    for part in (keys[1::2], keys[::4], keys[2::4]):
        store.append(rows(*part))
    store.finish(keys)
    assert [row["key"] for row in store.rows()] == keys
    assert pq.ParquetFile(store.path).num_row_groups == 7


def test_a_file_of_one_large_row_group_is_merged_too(tmp_path, monkeypatch):
    store, keys = RowStore(tmp_path, "rows", ORIGIN), [f"k{number}" for number in range(8)]
    store.append(rows(*keys))
    store.finish(keys)
    assert pq.ParquetFile(store.path).num_row_groups == 1  # as earlier versions wrote any number of rows
    monkeypatch.setattr(module, "ROW_GROUP", 3)
    store.append(rows("new"))
    store.finish(["new", *keys[::-1]])
    assert [row["key"] for row in store.rows()] == ["new", *keys[::-1]]
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name] == []


def test_a_column_is_read_for_the_keys_asked_for(tmp_path):
    store = RowStore(tmp_path, "rows", ORIGIN)
    store.append([{"key": key, "text": key.upper(), "ids": [1] * number} for number, key in enumerate("abc")])
    assert store.values("text", {"a", "c", "x"}) == {"a": "A", "c": "C"}
    assert store.count("ids", ["b", "c"]) == (2, 3)
    (table,) = store.tables(["text", "none"], ["b"])
    assert table.column_names == ["key", "text"]


def test_an_entry_may_grow_at_its_end_and_nowhere_else(tmp_path):
    RowStore(tmp_path, "rows", ORIGIN | {"prompts": ["1", "2"]}).append(rows("a"))
    RowStore(tmp_path, "rows", ORIGIN | {"prompts": ["1", "2", "3"]})
    RowStore(tmp_path, "rows", ORIGIN | {"prompts": ["1"]})
    assert json.loads((tmp_path / "rows.origin.json").read_text())["prompts"] == "1 2 3"
    with pytest.raises(UserError, match=r"changed: prompts\): choose another --run folder; these rows stay"):
        RowStore(tmp_path, "rows", ORIGIN | {"prompts": ["1", "2", "4"]})


def test_an_origin_of_an_earlier_version_is_known_again(tmp_path):
    digest = hashlib.sha256(b"1 2").hexdigest()[:16]
    RowStore(tmp_path, "rows", ORIGIN | {"prompts": digest}).append(rows("a"))
    RowStore(tmp_path, "rows", ORIGIN | {"prompts": ["1", "2"]})
    assert json.loads((tmp_path / "rows.origin.json").read_text())["prompts"] == "1 2"
    with pytest.raises(UserError, match="changed: prompts"):
        RowStore(tmp_path, "rows", ORIGIN | {"prompts": ["3"]})


def test_a_folder_in_use_by_another_process_is_one_line(tmp_path):
    folder = tmp_path / "run"
    held = RowStore(folder, "rows", ORIGIN)
    RowStore(folder, "rows", ORIGIN)  # one process may open it again
    other = (
        "import sys\nfrom tempspec.errors import UserError\nfrom tempspec.files import take_hold\n"
        "from pathlib import Path\ntry:\n    take_hold(Path(sys.argv[1]))\nexcept UserError as error:\n    print(error)"
    )
    line = [sys.executable, "-c", other, str(folder)]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert f"{folder} is in use by another run (process " in said
    held.append(rows("a"))
    held.finish(["a"])
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == ""


def test_rows_are_written_by_time_not_by_count(tmp_path):
    now = [0.0]
    store = RowStore(tmp_path, "rows", ORIGIN)
    writer = RowWriter(store, 10.0, clock=lambda: now[0])
    for key in "abc":
        writer.add(*rows(key))
    assert store.keys() == []
    now[0] = 9.9
    writer.tick()
    assert store.keys() == []
    now[0] = 10.0
    writer.tick()
    assert store.keys() == ["a", "b", "c"]
    writer.add(*rows("d"))
    writer.flush()
    assert store.keys() == ["a", "b", "c", "d"]
    assert len(list((tmp_path / "rows.parts").iterdir())) == 2


def earlier(key):
    return {"key": key, "expected": [0.5], "foreseen": [1.5]}


def test_rows_of_former_columns_go_on_with_todays(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(module, "rank_zero_info", said.append)
    store = RowStore(tmp_path, "rows", ORIGIN)
    store.append([earlier("a")])
    store.finish(["a"])
    store.append([earlier("b")])  # as an earlier version left both
    again = RowStore(tmp_path, "rows", ORIGIN)
    again.append([{"key": "c", "expected_acceptance": [2.0], "expected_length": [3.0]}])
    wanted = [{"key": key, "expected_acceptance": [0.5], "expected_length": [1.5]} for key in "ab"]
    assert again.rows(["a", "b"]) == wanted
    assert again.values("expected_length", "abc") == {"a": [1.5], "b": [1.5], "c": [3.0]}
    again.finish(["a", "b", "c"])
    assert again.rows(["a", "b"]) == wanted
    assert set(pq.read_schema(again.path).names) == {"key", "expected_acceptance", "expected_length"}
    (line,) = said
    assert "column expected as expected_acceptance, foreseen as expected_length" in line


def test_rows_that_are_refused_keep_their_columns(tmp_path):
    RowStore(tmp_path, "rows", ORIGIN).append([earlier("a")])
    (part,) = (tmp_path / "rows.parts").iterdir()
    with pytest.raises(UserError, match="another configuration"):
        RowStore(tmp_path, "rows", ORIGIN | {"seed": "2"})
    assert "foreseen" in pq.read_schema(part).names


def test_rows_of_today_are_not_written_again(tmp_path):
    RowStore(tmp_path, "rows", ORIGIN).append([{"key": "a", "expected_length": [1.0]}])
    (part,) = (tmp_path / "rows.parts").iterdir()
    before = part.stat().st_ino
    RowStore(tmp_path, "rows", ORIGIN)
    assert part.stat().st_ino == before
