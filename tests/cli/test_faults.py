"""What a run leaves when the disk is full, or when it is stopped in the middle of a batch."""

import csv
import json
import os
import resource
import signal
from contextlib import contextmanager

import pyarrow.parquet as pq
import pytest
import torch

from tempspec.decoding.engine import Engine
from tempspec.interfaces import Request
from tempspec.modules.predict.row_store import RowStore

CLOSED_FORMS = ("expected_acceptance", "expected_length")

SMALL = 20_000
"""Bytes: room for a configuration and metrics, not for a checkpoint."""


def _timeless(path, content):
    """A file's content; of environment.json all but the moment at which the run began."""
    return json.loads(content) | {"started": None} if path.name == "environment.json" else content


@contextmanager
def files_of_at_most(size):
    """Let this process write no larger file: what exceeds it fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_what_was_there_stays(world, run, tmp_path):
    config = ["--config", str(world / "lm.yaml"), "--run", str(tmp_path / "run")]
    assert run("fit", *config)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run/fit").rglob("*.*") if "metrics" not in path.name}
    with files_of_at_most(SMALL):
        code, _, error = run("fit", *config, "--trainer.max_steps", "6", "--ckpt_path", "auto")
    assert code == 2
    assert "no space left" in error.splitlines()[-1]
    assert "Traceback" not in error
    kept = {path: _timeless(path, path.read_bytes()) for path in before if path.name != "config.yaml"}
    assert kept == {path: _timeless(path, held) for path, held in before.items() if path.name != "config.yaml"}


def test_a_stop_within_a_batch_keeps_the_rows_that_are_finished(world):
    from transformers import AutoModelForCausalLM

    engine = Engine(AutoModelForCausalLM.from_pretrained(world / "target"), 16, slots=2)
    requests = [Request((index + 2,), 1.0, max_new_tokens=3 + 20 * index, key=str(index)) for index in range(2)]
    rounds = iter(range(1000))
    found = list(engine.run(requests, lambda: next(rounds) >= 5))
    assert [completion.request.key for completion in found] == ["0"]
    whole = {completion.request.key: completion.tokens for completion in engine.run(requests)}
    assert found[0].tokens == whole["0"]


@pytest.mark.parametrize(("broken", "named"), [("target", "the target's logits"), ("draft", "the draft's logits")])
def test_logits_that_are_nan_stop_predict_and_name_the_request(broken, named, world, run, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(world / broken)
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(world / broken).save_pretrained(tmp_path / "nan")
    code, _, error = run("predict", "--config", world / "pair.yaml", f"--model.{broken}", tmp_path / "nan")
    assert code == 2
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert named in line
    assert "request acceptance/token/p/" in line


def test_auto_starts_or_continues(world, run, tmp_path):
    config = ["--config", world / "lm.yaml", "--run", tmp_path / "run", "--ckpt_path", "auto"]
    assert run("fit", *config, "--trainer.max_steps", 2)[0] == 0
    code, _, error = run("fit", *config)
    assert code == 0
    assert "Restored all states" in error or (tmp_path / "run/fit/metrics.csv").read_text().count("\n") >= 5
    assert not (tmp_path / "run/fit/metrics.1.csv").exists()


VALIDATING = ("--trainer.max_steps=8", "--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null")


def left_by_fit(folder):
    """What was logged, speeds left out, and the draft's weights."""
    with (folder / "fit/metrics.csv").open(newline="") as file:
        logged = [
            {name: value for name, value in row.items() if "per_second" not in name} for row in csv.DictReader(file)
        ]
    return logged, (folder / "fit/draft/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(world, tmp_path_factory):
    from tempspec.__main__ import main

    folder = tmp_path_factory.mktemp("unbroken")
    assert main(["fit", "--config", str(world / "pair.yaml"), "--run", str(folder), *VALIDATING]) == 0
    return left_by_fit(folder)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 3), (signal.SIGINT, 4), (None, 5)], ids=str)
def test_a_broken_fit_leaves_what_an_unbroken_one_does(number, step, unbroken, world, run, tmp_path, monkeypatch):
    from tempspec.modules.callbacks import GracefulStop, LastCheckpoint

    def strike(callback, trainer, *args):
        if trainer.global_step == step - 1:  # within the step of this number
            if number is None:
                raise RuntimeError("killed")
            os.kill(os.getpid(), number)

    config = ["fit", "--config", world / "pair.yaml", "--run", tmp_path / "run", *VALIDATING, "--ckpt_path", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr(GracefulStop, "on_train_batch_start", strike)
        if number is None:
            patch.setattr(LastCheckpoint, "on_exception", lambda *args: None)
            with pytest.raises(RuntimeError, match="killed"):
                run(*config)
        else:
            assert run(*config)[0] == 128 + number
    assert run(*config)[0] == 0
    assert left_by_fit(tmp_path / "run") == unbroken


def left_by_decoding(folder):
    """All rows but their clock times."""
    (path,) = folder.glob("*/*.parquet")
    rows = pq.read_table(path).to_pylist()
    return [{name: value for name, value in row.items() if not name.startswith("seconds_")} for row in rows]


@pytest.fixture(scope="module")
def decoding(world):
    """The options of a decoding with several rounds, and of rows that come one after the other."""
    sweep = {"max_new_tokens": 6, "slots": 2, "timing_prompts": 0}
    return ["--config", str(world / "pair.yaml"), *(f"--model.sweep.{name}={value}" for name, value in sweep.items())]


@pytest.fixture(scope="module")
def whole(decoding, tmp_path_factory):
    """The rows of each command, not stopped."""
    from tempspec.__main__ import main

    found = {}
    for command in ("generate", "predict"):
        folder = tmp_path_factory.mktemp(command)
        assert main([command, *decoding, "--run", str(folder)]) == 0
        found[command] = left_by_decoding(folder)
    return found


@pytest.mark.parametrize("rounds", [1, 3, 5])
@pytest.mark.parametrize("command", ["generate", "predict"])
def test_a_stopped_decoding_leaves_what_an_unbroken_one_does(
    command, rounds, decoding, whole, run, tmp_path, monkeypatch
):
    from tempspec.modules import distillation

    config = [command, *decoding]
    written, append, calls = [], RowStore.append, iter(range(10_000))

    def recording(store, rows):
        written.extend(row["key"] for row in rows)
        append(store, rows)

    monkeypatch.setattr(RowStore, "append", recording)
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "stop_code", lambda trainer: 143 if next(calls) >= rounds else 0)
        assert run(*config, "--run", tmp_path / "cut")[0] == 143
    assert run(*config, "--run", tmp_path / "cut")[0] == 0
    cut = left_by_decoding(tmp_path / "cut")
    assert sorted(written) == sorted(row["key"] for row in whole[command])  # nothing is decoded twice
    for left, right in zip(cut, whole[command], strict=True):
        forms = [{name: row[name] for name in CLOSED_FORMS if name in row} for row in (left, right)]
        assert left | forms[1] == right
        for name, values in forms[0].items():  # their last digits depend on a row's neighbours
            assert values == pytest.approx(forms[1][name], abs=1e-4)
