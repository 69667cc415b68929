import json
import re

import pytest
import torch

from tempspec.models.eagle3 import Eagle3
from tempspec.models.loading import load_model
from tempspec.models.tapping import head_target


@pytest.fixture
def folder(world, tmp_path):
    """A sound head of the world's target."""
    target, head = head_target(load_model(str(world / "target"))), Eagle3(states=[0, 1, 2])
    head.save(head.build(target), target, tmp_path / "eagle3", "plain", torch.bfloat16)
    return tmp_path / "eagle3"


def test_a_sound_head_has_no_fault(run, world, folder):
    code, printed, error = run("check-head", folder, "--target", world / "target", "--tokens", "0")
    assert (code, printed) == (0, f"{folder}: no fault\n")
    assert "decoding" not in error


def test_its_acceptance_is_measured(run, world, folder):
    code, printed, error = run("check-head", folder, "--target", world / "target", "--tokens", "6")
    assert "decoding 6 prompts with it; --tokens 0 leaves that out" in error
    cold, warm, last = printed.splitlines()
    assert (code, last) == (0, f"{folder}: no fault")
    form = r"T = {}: \d\.\d\d tokens per pass; accepted by position:( \d\.\d\d){{4}}"
    assert re.fullmatch(form.format(0), cold)
    assert re.fullmatch(form.format(1), warm)


def test_a_head_that_is_not_read_says_why_it_is_not_measured(run, world, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    _, printed, _ = run("check-head", folder, "--target", world / "target")
    assert "note: its acceptance is not measured: an EAGLE-3 head has a SiLU-gated MLP" in printed


def test_faults_are_lines_and_the_exit_code_is_1(run, world, folder):
    config = json.loads((folder / "config.json").read_text())
    del config["head_dim"], config["eagle_config"]
    (folder / "config.json").write_text(json.dumps(config))
    moved = folder.rename(folder.parent / "head")
    code, printed, _ = run("check-head", moved, "--target", world / "target", "--tokens", "0")
    assert code == 1
    lines = printed.splitlines()
    assert [line for line in lines if line.startswith("fault: ")] == lines[:2]
    assert lines[-1].endswith("2 faults")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--target", "target"], "holds no EAGLE-3 head"),
        (["eagle3"], "--target"),
        (["eagle3", "--targt", "x"], "did you mean '--target'?"),
        (["eagle3", "--target", "./none"], "no such folder"),
    ],
)
def test_a_wrong_call_is_one_line(run, world, folder, arguments, says):
    arguments = [str(world / "target") if word == "target" else word for word in arguments]
    code, _, error = run("check-head", *arguments)
    assert code == 2
    assert says in error
    assert error.count("\n") == 1
