import json
from dataclasses import asdict

import pytest

from tempspec.files import write_atomically
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.goodput import Speed, Timed
from tempspec.reporting.page import write_report
from tempspec.reporting.runs import collect
from tempspec.reporting.sections.engine import engine
from tests.reporting.runs import PROMPTS, write_predict

LINE = {"name": "block efficiency", "theirs": Estimate(1.7, 1.6, 1.8, 12), "ours": Estimate(2.0, 1.9, 2.1, 12)}
LINE |= {"difference": Estimate(-0.3, -0.4, -0.2, 12), "simultaneous": Estimate(-0.3, -0.5, -0.1, 12)}


def speed(temperature, concurrency, step, drafted):
    requests = tuple(Timed(key, 0.2, step * 20, 20.0, 20 + drafted) for key in range(PROMPTS))
    return Speed(temperature, concurrency, drafted, requests)


@pytest.fixture
def run(tmp_path):
    """A run of two temperatures. One request at a time, drafting costs nothing; with 16, a token a tenth of a round."""
    folder = write_predict(tmp_path / "run", {0.0: 0.9, 1.0: 0.3})
    write_atomically(folder / "predict/config.yaml", "model: {verifiers: {token: TokenwiseRejection}}\n")
    speeds = [
        speed(t, many, step, drafted)
        for t in (0.0, 1.0)
        for many, dear in ((1, 0.1), (16, 0.13))
        for step, drafted in ((dear, 3), (0.1, 0))
    ]
    lines = {name: asdict(one) if isinstance(one, Estimate) else one for name, one in LINE.items()}
    finding = {"about": "T = 1", "says": "the engine drafts by argmax", "agrees": False, "lines": [lines]}
    kept = {"kind": "vLLM 0.32.0", "measured": {}, "findings": [finding], "speeds": [one.to_dict() for one in speeds]}
    write_atomically(folder / "serve-check/serve_check.json", json.dumps(kept))
    return folder


def tables(folder):
    return {sheet.name: sheet for sheet in engine(collect([str(folder)])).sheets}


def test_an_engines_figures_are_beside_ours(run, tmp_path):
    found = tables(run)
    assert found["engine"].rows == [
        ["run", "1", "block efficiency", LINE["theirs"], LINE["ours"], "-.300 [-.400, -.200]"]
    ]
    assert found["engine-findings"].rows == [["run", "T = 1", "the engine drafts by argmax"]]
    (row, *_) = found["engine-speed"].rows
    assert [format(field) for field in row[1:3]] == ["0.0", "1"]
    assert [round(field.value, 2) for field in row[3:]] == [11.5, 10.0, 1.15, 0.2]
    assert "A live engine" in write_report(collect([str(run)]), tmp_path / "page").read_text()


def lengths(folder):
    """By temperature and requests in flight."""
    return {(row[3], row[5]): row[6] for row in tables(folder)["engine-length"].rows}


def test_the_length_follows_acceptance_and_cost(run):
    assert lengths(run) == {(0.0, "1"): "3", (0.0, "16"): "3", (1.0, "1"): "3", (1.0, "16"): "1"}


def test_a_rule_on_whole_drafts_has_its_own_length_alone(run):
    write_atomically(run / "predict/config.yaml", "model: {verifiers: {token: BlockVerification}}\n")
    assert set(lengths(run).values()) == {"3"}


def test_an_engine_of_another_draft_is_left_out_with_a_note(run):
    path = run / "serve-check/serve_check.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"measured": {"draft": "other", "checkpoint": ""}}))
    collection = collect([str(run)])
    assert not engine(collection).sheets
    assert any("serve-check is of another draft than predict: left out" in note for note in collection.notes)
