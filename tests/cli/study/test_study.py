import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tempspec.cli.study.config import Study
from tempspec.cli.study.jobs import Jobs
from tempspec.cli.study.plan import Plan


@pytest.fixture(scope="session")
def study(world):
    """A study of two drafts x two temperatures x two verifiers x two prompt sets."""
    text = f"{world}/text.jsonl"
    prompts = {name: {"path": text, "limit": 3, "prompt_tokens": tokens} for name, tokens in (("p", 4), ("q", 5))}
    sweep = {"target_temperatures": [0.0, 1.0], "max_new_tokens": 4, "timing_prompts": 0}
    experiment = {
        "trainer": {"max_steps": 2, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {"target": f"{world}/target", "draft": f"{world}/draft", "sweep": sweep}
        | {"verifiers": {"token": "TokenwiseRejection", "block": "BlockVerification"}},
        "data": {"train": {"path": text}, "prompts": prompts, "max_length": 16, "batch_size": 4}
        | {"cache_dir": f"{world}/cache"},
    }
    drafts = {"plain": {"fit": False}, "fitted": {"labels": {"train_temperature": 0.5}}}
    drafts["fitted"]["options"] = {"model.temperature": 0.5}
    config = {"study": "made", "out_of_domain": ["q"], "drafts": drafts, "experiment": experiment}
    (world / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return world / "study.yaml"


@pytest.fixture(scope="session")
def whole(study, tmp_path_factory):
    """The folder of the study, run from end to end."""
    from tempspec.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        assert main(["study", "--config", str(study)]) == 0
        return Path.cwd() / "made"


def numbers(folder):
    """Everything that a study measured, but for the seconds."""
    found = {"study.json": json.loads((folder / "study.json").read_text())}
    for path in sorted(folder.glob("runs/*/*/*.parquet")):
        table = pq.read_table(path)
        clocks = [name for name in table.column_names if name.startswith("seconds")]
        found[path.relative_to(folder).as_posix()] = table.drop_columns(clocks).to_pylist()
    return found


def test_the_plan_is_shown_and_nothing_run(study, run):
    code, printed, error = run("study", "--config", study, "--dry-run")
    assert (code, error) == (0, "")
    assert printed.startswith("plan: 16 cells in 2 runs\n  plain-s0                    8 cells\n")
    assert "left: roughly 0 min (all of it guessed from the models' sizes, on one free core)" in printed
    assert [path.name for path in Path("made").iterdir()] == ["configs"]


def test_the_plan_knows_unlimited_rows_and_says_what_is_unknown(study, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(study.read_text())
    config["experiment"]["trainer"]["max_epochs"] = config["experiment"]["trainer"].pop("max_steps")
    for source in config["experiment"]["data"]["prompts"].values():
        source["limit"] = None
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    found = []
    for path in (study, tmp_path / "mine.yaml"):
        declared = Study.of(yaml.safe_load(path.read_text()))
        plan = Plan.of(declared, Jobs(declared), declared.runs)
        found.append(plan.work["plain-s0"]["predict"])
        assert ("and the fits, which end by epochs (" in plan.left) == (path != study)
    rows = len((world / "text.jsonl").read_text().splitlines())
    assert found[1] / found[0] == rows / 3


@pytest.mark.parametrize(
    ("part", "options", "said"),
    [
        ("experiment", {"seed_everything": 7}, "seed_everything is what a study sets itself: it makes it from seeds"),
        ("experiment", {"run": "elsewhere"}, "run is what a study sets itself: it makes it from study; leave it out"),
        ("data", {"validation": {"v": {"path": "x.jsonl"}}}, "data.validation is what a study sets itself"),
        ("model", {"validation_temperatures": [0.3]}, "model.validation_temperatures is what a study sets itself"),
        ("options", {"model.sweep.seed": 3}, "model.sweep.seed is what a study sets itself"),
        ("study", {"seeds": [0, 0]}, "seeds must differ, got [0, 0]"),
        ("study", {"fitting_prompts": {"pth": "x"}, "fixed": "sampled"}, ""),
    ],
)
def test_what_a_study_decides_itself_is_refused(study, run, tmp_path, part, options, said):
    config = yaml.safe_load(study.read_text())
    experiment = config["experiment"]
    places = {"study": config, "experiment": experiment, "options": config["drafts"]["fitted"]["options"]}
    (places | {"data": experiment["data"], "model": experiment["model"]})[part].update(options)
    if not said:  # a wrong prompt source is found before anything is run
        experiment["model"]["sweep"]["draft_temperatures"] = ["fitted"]
        said = "pth"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    code, printed, error = run("study", "--config", tmp_path / "mine.yaml", "--dry-run")
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert said in error


def test_every_run_is_measured_and_indexed(whole):
    index = json.loads((whole / "study.json").read_text())
    assert index["status"] == {"done": 16, "total": 16}
    assert index["prompt_sets"] == {"p": {"domain": "in"}, "q": {"domain": "out"}}
    assert index["drafts"]["fitted"] == {
        "labels": {"fitted": True, "train_temperature": 0.5},
        "seeds": {"0": "runs/fitted-s0"},
    }
    for draft in index["drafts"].values():
        folder = whole / draft["seeds"]["0"]
        measured = {row["prompt_set"] for row in pq.read_table(folder / "validate/acceptance.parquet").to_pylist()}
        sampled = {name for sets in index["prefixes"]["sampled"].values() for name in sets.values()}
        assert measured == sampled | set(index["prefixes"]["fixed"].values())
        decoded = pq.read_table(folder / "predict/predictions.parquet").to_pylist()
        cells = {(row["verifier"], row["prompt_set"], row["target_temperature"]) for row in decoded}
        assert {cell for cell in cells if cell[0] in ("token", "block")} == {
            (rule, name, t) for rule in ("token", "block") for name in "pq" for t in (0.0, 1.0)
        }


def test_the_fixed_text_is_the_files_own(whole, world):
    own = [json.loads(line)["text"] for line in (world / "text.jsonl").read_text().splitlines()]
    rows = pq.read_table(whole / "shared/fixed-p.parquet").to_pylist()
    assert len(rows) == 3
    assert all(any(text.startswith(f"{row['prompt']} {row['response']}") for text in own) for row in rows)
    assert all(len(row["response_ids"]) == 4 for row in rows)


@pytest.mark.slow
def test_drafts_learn_from_target_texts_and_are_tried_with_trees(study, world, run, tmp_path):
    config = yaml.safe_load(study.read_text())
    config["training_prompts"] = {"path": f"{world}/text.jsonl", "limit": 4, "prompt_tokens": 4}
    schedule = {"class_path": "Uniform", "init_args": {"low": 0.5, "high": 2.0, "per": "sequence"}}
    tree = {"model.drafter": {"class_path": "StaticTree", "init_args": {"levels": [2, 1]}}}
    config["drafts"] = {
        "conditioned": {
            "generation_temperatures": [0.5, 1.0],
            "options": {"model.conditioning_rank": 1, "model.temperature": schedule},
        },
        "tree": {"fit": False, "options": tree | {"model.verifiers": {"tree": "RecursiveRejection"}}},
    }
    config["experiment"]["model"]["sweep"]["target_temperatures"] = [1.0]
    del config["experiment"]["data"]["prompts"]["q"], config["experiment"]["data"]["train"], config["out_of_domain"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config | {"fixed": "sampled"}, sort_keys=False))
    code, _, error = run("study", "--config", tmp_path / "mine.yaml")
    assert code == 0, error
    index = json.loads(Path("made/study.json").read_text())
    assert index["status"] == {"done": 3, "total": 3}
    assert index["prefixes"]["fixed"] == {"p": "p sampled@1"}
    training = [pq.read_table(f"made/shared/training-{t}.parquet").to_pylist() for t in ("0.5", "1")]
    assert [{row["generation_temperature"] for row in rows} for rows in training] == [{0.5}, {1.0}]


def test_texts_that_an_earlier_plan_asked_for_are_left_out(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = Jobs(Study.of(yaml.safe_load(study.read_text())))
    (jobs.study.texts / "training/generate").mkdir(parents=True)
    table = pa.table({"key": ["now", "before"], "prompt_set": ["training"] * 2, "generation_temperature": [1.0] * 2})
    pq.write_table(table, jobs.study.texts / "training/generate/generated.parquet")
    jobs._earlier = SimpleNamespace(runner=SimpleNamespace(order=["now"]))
    jobs._split("training")
    assert pq.read_table(jobs.study.texts / "training-1.parquet")["key"].to_pylist() == ["now"]


def test_a_finished_study_does_nothing(study, whole, run, monkeypatch):
    before = numbers(whole)
    times = {path: path.stat().st_mtime_ns for path in whole.glob("runs/**/*.*")}
    monkeypatch.chdir(whole.parent)
    code, printed, error = run("study", "--config", study)
    assert code == 0, error
    assert "plain-s0                    8 cells  finished" in printed
    assert printed.count("finished before: reused") == 6
    assert {path: path.stat().st_mtime_ns for path in whole.glob("runs/**/*.*")} == times
    assert numbers(whole) == before


def files(folder):
    """How many files a study has left so far; one that is moved meanwhile may be missed."""
    return sum(len(names) for _, _, names in os.walk(folder))


def killed(study, due):
    """Start the study and kill it as soon as `due()`; returns whether it was killed before its end."""
    command = [sys.executable, "-m", "tempspec", "study", "--config", str(study)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not due():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    "moment",
    [
        "steps/shared/sampled.json",
        "runs/plain-s0/predict/predictions.parts",
        "runs/fitted-s0/fit/checkpoints/last.ckpt",
        "runs/fitted-s0/fit/draft/config.json",
    ],
)
@pytest.mark.slow
def test_a_study_killed_where_it_writes_ends_the_same(moment, study, whole, run):
    assert killed(study, Path("made", moment).exists)
    assert not Path("made/steps/fitted-s0/predict.json").exists()
    code, _, error = run("study", "--config", study)
    assert code == 0, error
    assert numbers(Path("made")) == numbers(whole)


@pytest.mark.parametrize(
    ("seed", "kills"),
    [
        pytest.param(0, 1, marks=pytest.mark.slow),
        *(pytest.param(seed, 3, marks=pytest.mark.exhaustive) for seed in range(1, 6)),
    ],
)
def test_a_study_killed_at_random_moments_ends_the_same(seed, kills, study, whole, run):
    """A moment is a number of files and some milliseconds more, so that any part of a study is hit on any machine."""
    generator = random.Random(seed)
    for _ in range(kills):
        moment, pause = generator.randint(files("made"), max(files(whole), files("made"))), generator.uniform(0, 0.3)
        killed(study, lambda moment=moment, pause=pause: files("made") >= moment and not time.sleep(pause))
    code, _, error = run("study", "--config", study)
    assert code == 0, error
    assert numbers(Path("made")) == numbers(whole)


def test_draft_temperatures_are_fitted_on_other_prompts(study, world, run, tmp_path):
    config = yaml.safe_load(study.read_text())
    config["drafts"] = {"plain": {"fit": False}}
    config["experiment"]["model"]["sweep"] |= {"target_temperatures": [1.0], "draft_temperatures": ["same", "fitted"]}
    config["experiment"]["data"]["prompts"].pop("q")
    config["fitting_prompts"] = {"path": f"{world}/text.jsonl", "limit": 3, "prompt_tokens": 4}
    config.pop("out_of_domain")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    code, _, error = run("study", "--config", tmp_path / "mine.yaml")
    assert code == 2
    assert "fitting_prompts: expected prompts that are not measured, got 3 of data.prompts" in error
    config["fitting_prompts"]["prompt_tokens"] = 6
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    code, _, error = run("study", "--config", tmp_path / "mine.yaml")
    assert code == 0, error
    fits = json.loads(Path("made/runs/plain-s0/validate/draft_temperatures.json").read_text())
    fitted = [(fit["target_temperature"], fit["draft_temperature"]) for fit in fits["fits"]]
    decoded = pq.read_table("made/runs/plain-s0/predict/predictions.parquet").to_pylist()
    assert {(row["target_temperature"], row["draft_temperature"]) for row in decoded} == {(1.0, 1.0), *fitted}
    answers = pq.read_table("made/shared/fitting-1.parquet").to_pylist()
    assert fits["fits"][0]["acceptance"]["prompts"] == len({tuple(row["prompt_ids"]) for row in answers}) == 3


@pytest.mark.slow
def test_two_shards_merged_equal_one_run(study, whole, run, tmp_path, monkeypatch):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        assert run("study", "--config", study, "--shard", f"{number}/2")[0] == 0
        assert len(list(Path("made/runs").iterdir())) == 1
    shutil.copytree(tmp_path / "1/made", "made", dirs_exist_ok=True)
    code, printed, error = run("study", "--config", study)
    assert code == 0, error
    assert printed.count("finished before: reused") == 6
    assert numbers(Path("made")) == numbers(whole)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b"])
def test_a_shard_that_is_none_is_refused(shard, study, run):
    code, _, error = run("study", "--config", study, "--shard", shard)
    assert code == 2
    assert error.startswith("error: --shard expected i/n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drafts": {}}, "at least one draft"),
        ({"out_of_domain": ["r"]}, "out_of_domain names 'r'"),
        ({"kind": "novel"}, "kind"),
        ({"experiment": {"data": {}}}, "experiment.model is missing"),
        ({"drafts": {"d": {"options": {"model.nothing": 1}}}}, "nothing"),
        ({"drafts": {"d": {"options": {"model.target.deep": 1}}}}, "target"),
        ({"drafts": {"d": {"options": {"model.sweep.draft_temperatures": "fitted"}}}}, "need fitting_prompts"),
        ({"drafts": {"d": {"generation_temperatures": [1.0]}}}, "training_prompts"),
    ],
)
def test_what_no_study_could_be_is_refused_in_one_line(change, message, study, run, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | change))
    code, _, error = run("study", "--config", tmp_path / "mine.yaml", "--dry-run")
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_an_ordinary_configuration_is_told_what_a_study_is(world, run):
    code, _, error = run("study", "--config", world / "pair.yaml", "--dry-run")
    assert code == 2
    assert "a study's file names `study`, `experiment` and `drafts`" in error
    assert len(error.splitlines()) == 1
