import json

import pytest

from tempspec.errors import UserError
from tempspec.modules.store import RowStore

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


def test_an_interruption_between_merging_and_tidying_loses_and_repeats_nothing(tmp_path):
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
