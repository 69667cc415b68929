"""Figures belong to a draft by its weights: those of two drafts are never in one report."""

import json
import shutil

import pytest

from tempspec.errors import UserError
from tempspec.reporting.measured import own_draft, rows_of_another_draft, write_draft_record
from tempspec.reporting.model_card import draft_card
from tempspec.reporting.records import write_metrics_json
from tempspec.reporting.runs import collect, read_run
from tests.reporting.runs import write_predict, write_validate


def leave_draft(run, weights):
    """What fit leaves of a draft whose weights are these bytes."""
    draft = run / "fit" / "draft"
    draft.mkdir(parents=True, exist_ok=True)
    (draft / "config.json").write_text("{}")
    (draft / "model.safetensors").write_bytes(weights)
    (run / "fit" / "config.yaml").write_text("model: {target: t, temperature: 0.5}\ndata: {}\n")
    return own_draft(draft)


def measure(run, **drafts):
    """Let stages say which draft they measured; a draft of their own run's is named by its place."""
    for stage, (digest, path) in drafts.items():
        write_metrics_json(run / stage / "metrics.json", {}, measured={"draft": digest, "checkpoint": ""})
        (run / stage / "config.yaml").write_text(f"run: {run}\nmodel: {{draft: {path}}}\n")


@pytest.fixture
def place(tmp_path):
    run = tmp_path / "run"
    write_predict(run, {1.0: 0.5})
    write_validate(run, 0.1)
    return run


def test_stages_of_the_draft_that_is_there_are_both_reported(place):
    digest, own = leave_draft(place, b"a"), place / "fit/draft"
    measure(place, validate=(digest, own), predict=(digest, own))
    run = read_run(place)
    assert run.rows
    assert run.analytic_rows
    assert not run.notes


def test_a_draft_that_was_replaced_takes_its_figures_along(place):
    old = leave_draft(place, b"a")
    new, own = leave_draft(place, b"b"), place / "fit/draft"
    measure(place, validate=(new, own), predict=(old, own))
    run = read_run(place)
    assert not run.rows
    assert run.analytic_rows
    (note,) = run.notes
    assert "predict measured a draft that fit has replaced since: left out" in note


def test_nothing_but_replaced_figures_is_an_error_that_says_so(place):
    old = leave_draft(place, b"a")
    leave_draft(place, b"b")
    measure(place, validate=(old, place / "fit/draft"), predict=(old, place / "fit/draft"))
    with pytest.raises(UserError, match="measured a draft that fit has replaced since: left out"):
        collect([place])


def test_stages_that_measured_two_drafts_are_not_mixed(place):
    measure(place, validate=("a" * 32, "models/a"), predict=("b" * 32, "models/b"))
    run = read_run(place)
    assert run.rows
    assert not run.analytic_rows
    assert run.notes == [f"{place / 'validate'} measured another draft than {place / 'predict'}: left out"]
    own = leave_draft(place, b"a")
    measure(place, validate=(own, place / "fit/draft"))
    run = read_run(place)
    assert not run.rows
    assert run.analytic_rows


def test_a_draft_from_elsewhere_is_reported_beside_a_fit(place):
    leave_draft(place, b"a")
    measure(place, validate=("c" * 32, "models/a"), predict=("c" * 32, "models/a"))
    run = read_run(place)
    assert run.rows
    assert run.analytic_rows


def test_a_run_that_was_moved_still_knows_its_own_draft(place, tmp_path):
    old, own = leave_draft(place, b"a"), place / "fit/draft"
    measure(place, validate=(old, own), predict=(old, own))
    place.rename(tmp_path / "moved")
    run = read_run(tmp_path / "moved")
    assert run.rows
    assert collect([tmp_path / "moved"]).drafts[0].trained == (0.5, 0.5)
    leave_draft(tmp_path / "moved", b"b")
    assert not read_run(tmp_path / "moved").rows


def test_figures_without_a_digest_are_of_an_unknown_draft(place):
    leave_draft(place, b"a")
    (place / "predict/config.yaml").write_text(f"run: {place}\nmodel: {{draft: {place / 'fit/draft'}}}\n")
    run = read_run(place)
    assert run.rows
    assert [note for note in run.notes if "of an earlier version of tempspec" in note]


def test_a_checkpoint_that_was_replaced_takes_its_figures_along(place):
    from tempspec.models.digests import file_digest

    leave_draft(place, b"a")
    file = place / "fit/checkpoints/last.ckpt"
    file.parent.mkdir()
    file.write_bytes(b"one")
    measured = {"draft": "d" * 32, "checkpoint": file_digest(file)}
    write_metrics_json(place / "predict/metrics.json", {}, measured=measured)
    (place / "predict/config.yaml").write_text(f"run: {place}\nckpt_path: {file}\nmodel: {{draft: d}}\n")
    assert read_run(place).rows
    file.write_bytes(b"another")
    assert not read_run(place).rows


def test_a_drafter_without_a_model_goes_with_any_draft(place):
    digest, own = leave_draft(place, b"a"), place / "fit/draft"
    measure(place, validate=(digest, own), predict=("", own))
    run = read_run(place)
    assert run.rows
    assert run.analytic_rows
    assert not run.notes


def test_what_made_a_draft_is_believed_of_these_weights_alone(place):
    leave_draft(place, b"a")
    write_draft_record(place / "fit/draft", {"model": {"target": "t", "divergence": "first"}, "data": {}})
    assert "- divergence: first" in str(draft_card(place))
    leave_draft(place, b"b")
    assert "- divergence: ForwardKL" in str(draft_card(place))


def test_rows_of_another_draft_are_told_to_whoever_fits(place):
    digest = leave_draft(place, b"a")
    origin = place / "predict/predictions.origin.json"
    origin.write_text(json.dumps({"draft": digest}))
    assert rows_of_another_draft(place) == ""
    leave_draft(place, b"b")
    assert "rename that folder before you decode with this one" in rows_of_another_draft(place)
    (place / "predict/predictions.parquet").unlink()
    assert rows_of_another_draft(place) == ""  # of a predict that was refused
    shutil.rmtree(place / "predict")
    assert rows_of_another_draft(place) == ""
