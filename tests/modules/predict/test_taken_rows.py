import pytest

from tempspec.modules.predict.row_store import RowStore
from tempspec.modules.predict.taken_rows import take_over

MINE = {"target": "a", "prompts p": ["1", "2"], "verifier engine": "Rule()"}
THEIRS = {"target": "a", "prompts p": ["1", "2", "3"], "verifier block": "Block()", "verifier token": "Rule()"}
DUE = [f"acceptance/engine/p/{prompt}/t1/d1/s0" for prompt in (0, 1)]


def row(label, prompt, text="theirs", pass_="acceptance"):
    return {"key": f"{pass_}/{label}/p/{prompt}/t1/d1/s0", "verifier": label, "text": text}


@pytest.fixture
def beside(tmp_path):
    """A finished stage of two rules, with more prompts than are due."""
    return decoded(tmp_path / "predict", THEIRS)


def decoded(folder, origin):
    store = RowStore(folder, "predictions", origin)
    rows = [row(label, prompt) for label in ("block", "token") for prompt in (0, 1, 2)]
    rows.append(row("token", 0, pass_="timing"))
    store.append(rows)
    store.finish([one["key"] for one in rows])
    return folder


def taken(folder, beside, origin, *already):
    store = RowStore(folder / "here", "predictions", origin)
    store.append(already)
    take_over(store, DUE, origin, beside)
    return {one["key"]: (one["verifier"], one["text"]) for one in store.rows()}


def test_rows_of_the_same_rule_are_taken_under_our_label(tmp_path, beside):
    assert taken(tmp_path, beside, MINE) == dict.fromkeys(DUE, ("engine", "theirs"))


def test_a_row_that_is_there_stays(tmp_path, beside):
    found = taken(tmp_path, beside, MINE, row("engine", 0, "ours"))
    assert found == {DUE[0]: ("engine", "ours"), DUE[1]: ("engine", "theirs")}


@pytest.mark.parametrize(
    "other", [{"target": "b"}, {"drafter": "c"}, {"prompts p": ["2", "1"]}, {"verifier engine": "Rule(k=2)"}]
)
def test_rows_that_would_be_decoded_otherwise_are_not_taken(tmp_path, beside, other):
    assert taken(tmp_path, beside, MINE | other) == {}


@pytest.mark.parametrize("lost", ["predictions.origin.json", "predictions.parquet"])
def test_rows_of_which_something_is_lost_are_not_taken(tmp_path, beside, lost):
    (beside / lost).unlink()
    assert taken(tmp_path, beside, MINE) == {}
