import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tempspec.errors import UserError
from tempspec.interfaces import BASELINE
from tempspec.reporting.page import sections
from tempspec.reporting.runs import MeasuredDraft, collect, read_run
from tempspec.reporting.sections.common import groups
from tempspec.reporting.study_index import FILE
from tests.reporting.runs import write_predict, write_small_study, write_validate


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("predict/predictions.parquet", b"PAR1", "predictions.parquet: expected a Parquet file, got a broken one"),
        ("predict/config.yaml", b"a: [", "config.yaml: expected YAML, got a broken file"),
        ("predict/config.yaml", b"- 1", "config.yaml: expected a mapping, got list"),
        ("predict/metrics.json", b"\xff", "metrics.json: expected JSON, got a broken file"),
        ("predict/environment.json", b"{", "environment.json: expected JSON, got a broken file"),
        ("validate/acceptance.parquet", b"", "acceptance.parquet: expected a Parquet file, got a broken one"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, file, content, said):
    run = write_validate(write_predict(tmp_path / "run", {1.0: 0.5}), 0.1)
    (run / file).write_bytes(content)
    with pytest.raises(UserError, match=said) as refused:
        collect([run])
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_no_run_leads_to_the_runs_in_it(tmp_path):
    write_predict(tmp_path / "inner", {1.0: 0.5})
    with pytest.raises(UserError, match=r"got none of these; did you mean .*inner"):
        collect([tmp_path])


def test_what_is_not_finished_is_left_out_with_a_note(tmp_path):
    run = write_validate(tmp_path / "run", 0.1)
    (run / "predict" / "predictions.parts").mkdir(parents=True)
    collection = collect([run])
    assert collection.notes == [f"{run / 'predict'} is not finished: left out"]
    assert collection.drafts[0].analytic
    assert not collection.drafts[0].rows


def test_nothing_finished_is_an_error(tmp_path):
    (tmp_path / "run" / "predict").mkdir(parents=True)
    with pytest.raises(UserError, match="expected a finished validate or predict, got none"):
        collect([tmp_path / "run"])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [write_predict(tmp_path / name / "run", {1.0: 0.5}) for name in "ab"]
    assert [draft.name for draft in collect([*runs, runs[0]]).drafts] == ["a/run", "b/run", "a/run (2)"]


def timed_on(folder, place):
    """Say of every timed row where it was timed."""
    file = folder / "predict" / "predictions.parquet"
    rows = [row | {"timed_on": place(row), "timed_in": "today"} for row in pq.read_table(file).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return folder


def test_a_speed_of_two_machines_is_no_speedup_and_is_told(tmp_path):
    run = write_predict(tmp_path / "run", {1.0: 0.5})
    (cell,) = (cell for cell in collect([run]).drafts[0].estimates if cell.verifier != BASELINE)
    assert "speedup" in collect([run]).drafts[0].estimates[cell]
    assert not collect([run]).notes
    timed_on(run, lambda row: "CPU" if row["verifier"] == BASELINE else "GPU")
    torn = collect([run])
    assert "speedup" not in torn.drafts[0].estimates[cell]
    assert [note for note in torn.notes if "timed on 2 machines (CPU; GPU)" in note]


def test_runs_of_different_machines_are_told(tmp_path):
    runs = [timed_on(write_predict(tmp_path / name, {1.0: 0.5}), lambda row, at=name: at) for name in "ab"]
    assert collect([runs[0]]).notes == []
    assert collect(runs).notes == ["timed on different machines (a: a; b: b): their tokens/s cannot be compared"]


def test_a_study_is_read_with_what_it_lacks(tmp_path):
    collection = collect([write_small_study(tmp_path / "study")])
    assert collection.domains == {"in": "in", "out": "out"}
    assert [draft.labels["train_temperature"] for draft in collection.drafts] == [1.0, 1.5]
    assert "1 of 3 runs are not there yet: missing left out" in collection.notes
    assert "the study is not finished: 11 of 12 cells" in collection.notes


def test_a_name_keeps_to_its_line(tmp_path):
    study = write_small_study(tmp_path / "study", name="two\nlines\x1b[31m")
    assert (study / FILE).is_file()
    assert collect([study]).title.isprintable()


@pytest.mark.parametrize(
    ("schedule", "trained"),
    [
        ("0.5", (0.5, 0.5)),
        ("{class_path: tempspec.plugins.schedules.Constant, init_args: {temperature: 1.5}}", (1.5, 1.5)),
        ("{class_path: tempspec.plugins.schedules.Uniform, init_args: {low: 0.5, high: 1.0}}", (0.5, 1.0)),
        ("{class_path: tempspec.plugins.schedules.Linear, init_args: {start: 2.0, end: 1.0}}", None),
    ],
)
def test_a_run_knows_the_temperatures_of_its_drafts_fit(tmp_path, schedule, trained):
    (tmp_path / "trained/fit").mkdir(parents=True)
    (tmp_path / "trained/fit/config.yaml").write_text(f"model: {{temperature: {schedule}}}\n")
    for name, draft in (("own", "trained/fit/draft"), ("other", "models/draft")):
        run = write_predict(tmp_path / name, {1.0: 0.5})
        (run / "predict/config.yaml").write_text(f"model: {{draft: {tmp_path / draft}}}\n")
    (tmp_path / "other/fit").mkdir()
    (tmp_path / "other/fit/config.yaml").write_text(f"model: {{temperature: {schedule}}}\n")
    found = collect([tmp_path / "own", tmp_path / "other"]).drafts
    assert [draft.trained for draft in found] == [trained, None]


def test_drafts_that_differ_in_more_than_temperature_stay_apart(tmp_path):
    folder = write_small_study(tmp_path / "study")
    index = json.loads((folder / FILE).read_text())
    labels = [draft["labels"] for draft in index["drafts"].values()]
    for name, alike in (("generation_temperature", [1.0, 1.5]), ("divergence", [])):
        labels[0][name], labels[1][name] = 1.0, 1.5
        (folder / FILE).write_text(json.dumps(index))
        assert list(collect([folder]).trained_at) == alike


def test_studies_are_joined_and_their_disagreements_told(tmp_path):
    first, second = (write_small_study(tmp_path / name, name=name) for name in "ab")
    index = json.loads((second / FILE).read_text())
    index["prompt_sets"] = {"in": {"domain": "out"}, "else": {"domain": "in"}}
    index["reference_temperature"] = 0.5
    index["prefixes"] = {"fixed": {"else": "else"}, "sampled": {"else": {"1": "else sampled@1"}}}
    (second / FILE).write_text(json.dumps(index))
    run = write_predict(tmp_path / "run", {1.0: 0.5})
    merged = collect([run, first, second])
    assert merged.domains == {"out": "out", "else": "in"}
    assert merged.reference == 1.0
    assert merged.prefixes.fixed == {"in": "in", "else": "else"}
    assert merged.prefixes.sampled.keys() == {"in", "else"}
    assert "in is in the domain of one study and out of another's: counted as neither" in merged.notes
    assert "b counts falls from T = 0.5, here they are counted from 1" in merged.notes


def test_runs_of_one_name_but_two_configurations_are_two_columns(tmp_path):
    studies = [write_small_study(tmp_path / name) for name in "ab"]
    (studies[1] / "cold/predict/config.yaml").write_text("rates: 7\n")
    sheets = {sheet.name: sheet for sheet in sections(collect(studies))[-1].sheets}
    columns = sheets["changes-predict"].columns
    assert len(columns) == len(set(columns)) == 5
    assert sum(name.endswith(" (2)") for name in columns) == 2


def test_fitted_draft_temperatures_are_a_rule_of_their_own(tmp_path):
    run = write_predict(tmp_path / "run", {1.0: 0.5, 2.0: 0.4}, draft_temperatures=(None, 0.75, 1.25))
    fits = [{"target_temperature": t, "draft_temperature": d} for t, d in ((1.0, 0.75), (2.0, 1.25))]
    (run / "validate").mkdir()
    (run / "validate" / "draft_temperatures.json").write_text(json.dumps({"fits": fits}))
    places = {place: [c.target_temperature for c in cells] for _, place, cells in groups(collect([run]).drafts)}
    assert places == {
        "in, token": [1.0, 2.0],
        "in, token, draft T fitted": [1.0, 2.0],
        "in, token, draft T = 1.25": [1.0],
        "in, token, draft T = 0.75": [2.0],
    }


def test_seeds_that_were_fitted_apart_share_no_place(tmp_path):
    for seed, fit in (("0", 0.8), ("1", 0.9)):
        run = write_predict(tmp_path / seed, {1.0: 0.7, 2.0: 0.5}, draft_temperatures=(None, fit))
        fits = [{"target_temperature": t, "draft_temperature": fit} for t in (1.0, 2.0)]
        (run / "validate").mkdir()
        (run / "validate/draft_temperatures.json").write_text(json.dumps({"fits": fits}))
    runs = {seed: read_run(tmp_path / seed) for seed in "01"}
    places = {
        place: [c.target_temperature for c in cells] for _, place, cells in groups([MeasuredDraft("both", {}, runs)])
    }
    assert places == {f"in, token{rule}": [1.0, 2.0] for rule in ("", ", draft T = 0.8", ", draft T = 0.9")}
