"""A head by the command line: fitted, measured, decoded with, checked and reported, without repeating a path."""

import csv
import json

import pytest
import torch
import yaml

from tempspec.models.eagle3 import Eagle3
from tempspec.models.loading import load_model
from tempspec.models.tapping import head_target


@pytest.fixture
def config(world, tmp_path):
    """The world's configuration, with a head in place of the draft."""
    held = yaml.safe_load((world / "pair.yaml").read_text())
    del held["model"]["draft"]
    held["model"] |= {
        "head": {"class_path": "Eagle3", "init_args": {"states": [0, 1, 2]}},
        "length": {"class_path": "FixedLength", "init_args": {"tokens": 2}},
        "sweep": {"target_temperatures": [0.0, 1.0], "max_new_tokens": 5, "timing_prompts": 1},
        "validation_temperatures": [0.0, 1.0],
    }
    (tmp_path / "head.yaml").write_text(yaml.safe_dump(held))
    return tmp_path / "head.yaml"


def rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_head_is_fitted_measured_and_served(run, world, config, tmp_path):
    options = "--config", config, "--run", tmp_path / "run", "--model.head.draft_vocabulary", "9"
    code, _, error = run("fit", *options)
    assert (code, error.count("error")) == (0, 0)
    head = tmp_path / "run" / "fit" / "head"
    assert sorted(file.name for file in head.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert not (head.parent / "draft").exists()
    card = (head / "README.md").read_text()
    assert "vllm serve target" in card
    assert "SGLang refuses to sample from a draft vocabulary" in card
    assert "not measured with this draft" in card
    code, printed, _ = run("validate", *options)
    assert code == 0
    assert "held/2" in printed
    sets = {row["prompt_set"] for row in rows(tmp_path / "run" / "validate" / "summary.csv")}
    assert sets == {"held", "held/2"}
    code, *_ = run("predict", *options)
    assert code == 0
    measured = [
        json.loads((tmp_path / "run" / stage / "metrics.json").read_text())["measured"]
        for stage in ("validate", "predict")
    ]
    assert measured[0] == measured[1]
    assert "Without decoding (`tempspec validate`), with 95% intervals" in (head / "README.md").read_text()
    code, *_ = run("report", tmp_path / "run")
    assert code == 0


def test_a_heads_memory_is_estimated(run, config):
    code, printed, _ = run("fit", "--config", config, "--estimate", "--trainer.devices", "2")
    assert code == 0
    assert "ddp" in printed
    assert "fsdp2" not in printed  # a head is never in parts


def test_a_new_head_is_measured_before_training(run, config, tmp_path):
    options = "--config", config, "--run", tmp_path / "run"
    assert run("validate", *options, "--before")[0] == 0
    code, _, error = run("validate", *options, "--before", "--model.head.draft_vocabulary", "9")
    assert code == 2
    assert "run `tempspec fit` first" in error


def test_a_heads_folder_is_named_beside_its_kind(run, world, tmp_path):
    target, kind = head_target(load_model(str(world / "target"))), Eagle3(states=[0, 1, 2])
    kind.save(kind.build(target), target, tmp_path / "head", "plain", torch.float32)
    code, _, error = run("validate", "--config", world / "pair.yaml", "--model.draft", tmp_path / "head")
    assert code == 2
    assert "is a head, which model.draft names beside its kind: add model.head: Eagle3" in error


def test_a_folder_without_a_head_is_refused(run, world, config):
    code, _, error = run("validate", "--config", config, "--model.draft", world / "draft")
    assert code == 2
    assert "holds no EAGLE-3 head" in error
    assert error.count("\n") == 1
