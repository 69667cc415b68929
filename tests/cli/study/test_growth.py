"""A study that is asked for more keeps what it has, and trains its drafts on one pass of the target."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tempspec.cli.study.config import Study
from tempspec.cli.study.jobs import Jobs
from tempspec.cli.study.plan import Plan


@pytest.fixture
def small(world, tmp_path, monkeypatch):
    """Writes a study of one untrained draft on a prompt set, with some of its entries changed."""
    monkeypatch.chdir(tmp_path)

    def write(limit=3, **changed):
        text = f"{world}/text.jsonl"
        experiment = {
            "trainer": {"max_steps": 2, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
            "model": {
                "target": f"{world}/target",
                "draft": f"{world}/draft",
                "divergence": "NegativeLogAcceptance",
                "verifiers": {"token": "TokenwiseRejection"},
                "sweep": {"target_temperatures": [1.0], "max_new_tokens": 4, "timing_prompts": 0}
                | {"stop_at_eos": False},
            },
            "data": {
                "train": {"path": text},
                "prompts": {"p": {"path": text, "limit": limit, "prompt_tokens": 4}},
                "max_length": 16,
                "batch_size": 4,
                "cache_dir": f"{world}/cache",
            },
        }
        config = {"study": "made", "fixed": "sampled", "drafts": {"plain": {"fit": False}}, "experiment": experiment}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(config | changed, sort_keys=False))
        return path

    return write


def marked(path, column, value):
    """Write a value into the first row of a file, to be recognised by; returns the row's key."""
    table = pq.read_table(path)
    column_at = table.column_names.index(column)
    values = [value, *table[column].to_pylist()[1:]]
    pq.write_table(table.set_column(column_at, column, pa.array(values, table[column].type)), path)
    return table["key"][0].as_py()


def test_more_prompts_are_added_to_those_there_are(small, run):
    code, _, error = run("study", "--config", small(2))
    assert code == 0, error
    texts, decoded = Path("made/shared/sampled/generate/generated.parquet"), "made/runs/plain-s0/predict"
    marked(texts, "response", "kept")
    key = marked(Path(decoded) / "predictions.parquet", "text", "kept")
    code, _, error = run("study", "--config", small(3))
    assert code == 0, error
    assert pq.read_table("made/shared/sampled-p-1.parquet")["response"].to_pylist().count("kept") == 1
    rows = {row["key"]: row["text"] for row in pq.read_table(f"{decoded}/predictions.parquet").to_pylist()}
    assert (len(rows), rows[key]) == (3, "kept")
    measured = pq.read_table("made/runs/plain-s0/validate/acceptance.parquet")
    assert len(set(measured["prompt_key"].to_pylist())) == 3


@pytest.mark.slow
def test_more_prompts_of_each_category_are_begun_anew(small, world, run):
    """They come in between, and rows are known by their prompts' places."""
    rows = [json.loads(row) for row in Path(f"{world}/text.jsonl").read_text().splitlines()]
    named = [row | {"category": "ab"[number // 20]} for number, row in enumerate(rows)]
    Path("named.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in named))
    experiment = yaml.safe_load(small().read_text())["experiment"]
    for limit in (1, 2):
        experiment["data"]["prompts"] = {"p": {"path": "named.jsonl", "limit": limit, "prompt_tokens": 4}}
        code, printed, error = run("study", "--config", small(experiment=experiment))
        assert code == 0, error
        assert printed.count("begun anew") == 2 * (limit - 1)  # the texts, and what is decoded
    decoded = pq.read_table("made/runs/plain-s0/predict/predictions.parquet").to_pylist()
    assert sorted(row["category"] for row in decoded) == ["a", "a", "b", "b"]


def test_texts_of_another_length_are_written_anew(small, run):
    assert run("study", "--config", small(2), "--until", "fit")[0] == 0
    marked("made/shared/sampled/generate/generated.parquet", "response", "kept")
    config = yaml.safe_load(small(2).read_text())
    config["experiment"]["model"]["sweep"]["max_new_tokens"] = 5
    small(2, experiment=config["experiment"])
    assert run("study", "--config", "mine.yaml", "--until", "fit")[0] == 0
    rows = pq.read_table("made/shared/sampled-p-1.parquet").to_pylist()
    assert not any(row["response"] == "kept" for row in rows)
    assert max(len(row["response_ids"]) for row in rows) == 5


@pytest.mark.slow
def test_another_fixed_text_is_written_beside_what_there_is(small, run):
    assert run("study", "--config", small(2), "--until", "fit")[0] == 0
    marked("made/shared/sampled/generate/generated.parquet", "response", "kept")
    code, _, error = run("study", "--config", small(2, fixed="continuation"), "--until", "validate")
    assert code == 0, error
    assert "kept" in pq.read_table("made/shared/sampled-p-1.parquet")["response"].to_pylist()


@pytest.mark.slow
def test_prompts_that_a_set_gains_are_not_fitted_on(small, world, run):
    rows = Path(f"{world}/text.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("measured", rows[:4]), ("fitting", rows[3:8])):
        Path(f"{name}.jsonl").write_text("".join(part))
    experiment = yaml.safe_load(small().read_text())["experiment"]
    experiment["model"]["sweep"]["draft_temperatures"] = ["fitted"]
    for limit, expected in ((3, 0), (4, 2)):
        experiment["data"]["prompts"] = {"p": {"path": "measured.jsonl", "limit": limit, "prompt_tokens": 4}}
        fitting = {"path": "fitting.jsonl", "prompt_tokens": 4}
        path = small(experiment=experiment, fitting_prompts=fitting)
        code, _, error = run("study", "--config", path, "--until", "fit")
        assert code == expected, error
    assert "expected prompts that are not measured, got 1 of data.prompts" in error


@pytest.mark.slow
def test_fewer_prompts_are_decoded_than_measured_and_later(small, run):
    code, printed, error = run("study", "--config", small(3, decoded_prompts=2), "--until", "validate")
    assert code == 0, error
    assert "plain-s0 is finished up to validate" in printed
    assert json.loads(Path("made/study.json").read_text())["status"] == {"done": 0, "total": 1}
    assert not Path("made/runs/plain-s0/predict").exists()
    measured = pq.read_table("made/runs/plain-s0/validate/acceptance.parquet")
    code, printed, error = run("study", "--config", "mine.yaml")
    assert code == 0, error
    assert printed.count("finished before: reused") == 2  # the texts, and validate
    assert pq.read_table("made/runs/plain-s0/predict/predictions.parquet").num_rows == 2
    assert len(set(measured["prompt_key"].to_pylist())) == 3


@pytest.mark.slow
def test_a_draft_that_is_decoded_otherwise_is_measured_once(small, run):
    drafts = {"chain": {"fit": False}, "short": {"fit": False, "measured": False}}
    drafts["short"]["options"] = {"model.length": {"class_path": "FixedLength", "init_args": {"tokens": 1}}}
    code, _, error = run("study", "--config", small(1, drafts=drafts))
    assert code == 0, error
    assert json.loads(Path("made/study.json").read_text())["status"] == {"done": 2, "total": 2}
    assert [path.parts[-3] for path in Path().glob("made/runs/*/validate/metrics.json")] == ["chain-s0"]


@pytest.mark.slow
def test_drafts_of_one_text_learn_from_one_cache(small, world, run):
    """All tokens are kept, so that they learn what the target in memory would teach them."""
    drafts = {
        "low": {"options": {"model.temperature": 0.5}},
        "high": {"options": {"model.temperature": 1.5}},
        "uncached": {"options": {"model.temperature": 0.5}, "cached": False},
    }
    teacher = {"tokens": 16, "temperatures": [0.5, 1.0, 1.5]}
    path = small(1, drafts=drafts, seeds=[0, 1], teacher=teacher)
    code, _, error = run("study", "--config", path, "--until", "validate")
    assert code == 0, error
    (folder,) = Path("made/shared").glob("teacher-*/cache")
    for name in ("low-s0", "low-s1", "high-s0"):
        config = yaml.safe_load(Path(f"made/configs/{name}.yaml").read_text())
        assert config["model"]["teacher"] == teacher | {"folder": folder.as_posix()}
    assert "teacher" not in yaml.safe_load(Path("made/configs/uncached-s0.yaml").read_text())["model"]
    (cached, plain) = (
        pq.read_table(f"made/runs/{name}/validate/acceptance.parquet")["numerator"].to_pylist()
        for name in ("low-s0", "uncached-s0")
    )
    assert cached == pytest.approx(plain, abs=1e-5)


def test_heads_learn_from_one_cache_of_states(small, run):
    drafts = {"low": {"options": {"model.temperature": 0.5}}, "high": {"options": {"model.temperature": 1.5}}}
    experiment = yaml.safe_load(small(1).read_text())["experiment"]
    del experiment["model"]["draft"]
    experiment["model"] |= {
        "head": {"class_path": "Eagle3", "init_args": {"states": [0, 1, 2]}},
        "length": {"class_path": "FixedLength", "init_args": {"tokens": 2}},
    }
    path = small(1, drafts=drafts, experiment=experiment, features={"dtype": "float32"})
    code, _, error = run("study", "--config", path, "--until", "fit")
    assert code == 0, error
    (folder,) = Path("made/shared").glob("features-*/cache")
    for name in drafts:
        config = yaml.safe_load(Path(f"made/configs/{name}-s0.yaml").read_text())
        assert config["model"]["features"] == {"dtype": "float32", "folder": folder.as_posix()}
        assert Path(f"made/runs/{name}-s0/fit/head/model.safetensors").exists()


def test_another_training_text_has_a_cache_of_its_own(small, world):
    texts = {
        name: {"generation_temperatures": t} for name, t in (("a", [0.5]), ("b", [1.0]), ("c", [1.0]), ("d", [0.5, 1]))
    }
    prompts = {"path": f"{world}/text.jsonl", "limit": 4, "prompt_tokens": 4}
    config = yaml.safe_load(small(1, drafts=texts, training_prompts=prompts, teacher={"tokens": 4}).read_text())
    study = Study.of(config)
    folders = [study.cache_config(run)["run"] for run in study.runs]
    assert folders[1] == folders[2]
    assert len(set(folders)) == 3
    jobs = Jobs(study)
    assert [step.name for step in jobs.shared()][2:] == [Path(folder).name for folder in dict.fromkeys(folders)]
    plan = Plan.of(study, jobs, study.runs)
    assert plan.work["shared"][Path(folders[3]).name] == 2 * plan.work["shared"][Path(folders[0]).name]


@pytest.mark.slow
def test_drafts_choose_among_named_training_prompts(small, world, run):
    sources = {
        name: {"path": f"{world}/text.jsonl", "limit": 4, "prompt_tokens": n} for name, n in (("x", 4), ("y", 5))
    }
    drafts = {"all": {"generation_temperatures": [1.0]}}
    drafts["one"] = drafts["all"] | {"training_prompts": ["y"]}
    code, _, error = run("study", "--config", small(1, drafts=drafts, training_prompts=sources), "--until", "fit")
    assert code == 0, error
    configs = {name: yaml.safe_load(Path(f"made/configs/{name}-s0.yaml").read_text()) for name in drafts}
    found = {name: [Path(text["path"]).name for text in one["data"]["train"]] for name, one in configs.items()}
    assert found == {"all": ["training-x-1.parquet", "training-y-1.parquet"], "one": ["training-y-1.parquet"]}
    lengths = [{len(row["prompt_ids"]) for row in pq.read_table(f"made/shared/{n}").to_pylist()} for n in found["all"]]
    assert lengths == [{4}, {5}]


def test_other_seeds_are_measured_on_the_same_texts(small):
    """A study that asked for other seeds on another day began its texts anew, and everything with them."""
    drafts = {"d": {"generation_temperatures": [1.0]}}
    options = {
        "drafts": drafts,
        "teacher": {"tokens": 4},
        "training_prompts": {"path": "text.jsonl", "prompt_tokens": 4},
    }
    first, other = (Study.of(yaml.safe_load(small(1, seeds=seeds, **options).read_text())) for seeds in ([0], [7, 0]))
    for purpose in first.purposes:
        assert first.texts_config(purpose) == other.texts_config(purpose)
    assert first.cache_config(first.runs[0]) == other.cache_config(other.runs[0])
    assert first.run_config(first.runs[0]) != other.run_config(other.runs[0])


def test_runs_wait_by_seed_and_by_length(small, tmp_path):
    drafts = {"long": {"options": {"trainer.max_steps": 900}}, "short": {}}
    study = Study.of(yaml.safe_load(small(1, drafts=drafts, seeds=[5, 4]).read_text()))
    plan = Plan.of(study, Jobs(study), study.runs)
    assert [run.name for run in plan.queue(study.runs)] == ["short-s5", "long-s5", "short-s4", "long-s4"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"decoded_prompts": 0}, "decoded_prompts must be 1 or more, got 0"),
        (
            {"drafts": {"d": {"measured": False, "options": {"model.sweep.draft_temperatures": "fitted"}}}},
            "drafts.d: fitted draft temperatures are found by what measured: false omits",
        ),
        ({"drafts": {"d": {"training_prompts": ["z"]}}}, "drafts.d.training_prompts names 'z', which is none of none"),
        ({"teacher": {}, "features": {}}, "teacher and features are two caches of one target"),
        ({"drafts": {"d": {"options": {"model.teacher": {}}}}}, "model.teacher is what a study sets itself"),
    ],
)
def test_what_a_study_cannot_keep_is_refused(small, run, changed, said):
    code, _, error = run("study", "--config", small(1, **changed), "--dry-run")
    assert (code, error.count("\n")) == (2, 1)
    assert said in error


def test_a_draft_of_another_text_leaves_the_others_trained(small):
    def fits(*drafts):
        config = yaml.safe_load(small().read_text())
        source = config["experiment"]["data"]["prompts"]["p"] | {"limit": 2}
        texts = {name: {"generation_temperatures": temperatures} for name, temperatures in drafts}
        study = Study.of(config | {"training_prompts": {"a": source, "b": source}, "drafts": texts})
        jobs = Jobs(study)
        return {run.draft: jobs.of_run(run)[0].depends for run in study.runs}

    one, two = fits(("cold", [0.5])), fits(("cold", [0.5]), ("warm", [1.0]))
    assert two["cold"] == one["cold"] != two["warm"]
    assert fits(("cold", [0.5, 1.0]))["cold"] != one["cold"]
