import json
from dataclasses import asdict

import pytest

from tempspec.errors import UserError
from tempspec.metrics.goodput import Speed, Timed
from tempspec.reporting.decoded_rows import decoded_rows
from tempspec.reporting.engine_record import advice_of, engine_record, spoken
from tests.reporting.runs import PROMPTS, write_predict


def speed(concurrency, step, drafted):
    requests = tuple(Timed(key, 0.2, step * 20, 20.0, 20 + drafted) for key in range(PROMPTS))
    return asdict(Speed(0.5, concurrency, drafted, requests))


def record(dear):
    """An engine whose rounds of three tokens cost so many times a plain one with 16 requests in flight."""
    return {"speeds": [speed(1, 0.1, 3), speed(1, 0.1, 0), speed(16, 0.1 * dear, 3), speed(16, 0.1, 0)]}


@pytest.fixture
def rows(tmp_path):
    """Two draft temperatures, accepted alike; a temperature that the engine was not timed at."""
    folder = write_predict(tmp_path / "run", {0.5: 0.6, 1.0: 0.3}, draft_temperatures=(None, 0.0))
    return decoded_rows(folder / "predict/predictions.parquet")[0]


def test_a_line_says_what_gains_most_of_all_cells(rows):
    found = list(advice_of(record(1.5), rows, {"token": "TokenwiseRejection"}))
    assert len(found) == 4  # two draft temperatures, two numbers of requests; none of plain decoding, none at T = 1
    best = max((one for one in found if one.concurrency == 1), key=lambda one: one.gain.speedup.value)
    lines = list(spoken("vLLM 0.32.0", found))
    draft = f"token, draft T = {best.cell.draft_temperature:g}, draft 3: "
    assert lines[0].startswith(f"in vLLM 0.32.0: in, T = 0.5, 1 in flight: {draft}")
    assert lines[1].startswith("in vLLM 0.32.0: in, T = 0.5, 16 in flight: token, draft T = ")


def test_where_nothing_gains_the_line_says_so(rows):
    lines = list(spoken("vLLM", advice_of(record(9.0), rows, {"token": "TokenwiseRejection"})))
    assert lines[1] == "in vLLM: in, T = 0.5, 16 in flight: draft nothing: no length is faster"


def test_an_engine_that_was_not_timed_says_nothing(rows):
    assert not list(advice_of({"speeds": []}, rows, {}))


@pytest.mark.parametrize("held", ["{", "[]"])
def test_a_broken_file_is_one_line(held, tmp_path):
    (tmp_path / "serve-check").mkdir()
    (tmp_path / "serve-check/serve_check.json").write_text(held)
    with pytest.raises(UserError, match="run serve-check again"):
        engine_record(tmp_path, {})


def test_figures_of_another_draft_are_left_out(tmp_path):
    (tmp_path / "serve-check").mkdir()
    (tmp_path / "serve-check/serve_check.json").write_text(json.dumps({"measured": {"draft": "one"}}))
    assert engine_record(tmp_path, {"draft": "one"}) == ({"measured": {"draft": "one"}}, "")
    assert engine_record(tmp_path, None) == ({"measured": {"draft": "one"}}, "")
    found, note = engine_record(tmp_path, {"draft": "two"})
    assert not found
    assert "is of another draft than predict" in note
    assert engine_record(tmp_path / "empty", {}) == ({}, "")
