"""A head in another format; what is written of drafts is tested with the conditioned ones."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tempspec.models.eagle3 import Eagle3
from tempspec.models.loading import load_model
from tempspec.models.tapping import head_target


@pytest.fixture
def folder(world, tmp_path):
    target, head = head_target(load_model(str(world / "target"))), Eagle3(states=[0, 1, 2])
    head.save(head.build(target), target, tmp_path / "eagle3", "plain", torch.bfloat16)
    return tmp_path / "eagle3"


def test_a_head_is_written_in_another_format_and_back(run, world, folder, tmp_path):
    options = ("--target", world / "target")
    to = ("--format", "speculators", "--output", tmp_path / "other")
    code, printed, _ = run("export", "--draft", folder, *options, *to)
    assert (code, printed) == (0, f"{tmp_path / 'other'}: the head in the speculators format\n")
    config = json.loads((tmp_path / "other/config.json").read_text())
    assert config["architectures"] == ["Eagle3Speculator"]
    assert config["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]
    assert run("export", "--draft", tmp_path / "other", *options, "--output", tmp_path / "back")[0] == 0
    assert (tmp_path / "back/config.json").read_bytes() == (folder / "config.json").read_bytes()
    first, last = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "back"))
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_an_exported_folder_has_a_card(run, world, folder, tmp_path):
    options = ("--draft", folder, "--target", world / "target", "--output", tmp_path / "plain")
    assert run("export", *options)[0] == 0
    card = ModelCard.load(tmp_path / "plain/README.md")
    assert "eagle3" in card.data.tags
    assert "This is the head in the plain format. It was not measured as it is here." in card.text
    assert '"method": "eagle3"' in card.text
    assert run("export", *options)[0] == 0  # an earlier export is replaced, its card too


def test_a_path_that_vllm_takes_for_another_method_is_named(run, world, folder, tmp_path):
    options = ("--draft", folder, "--target", world / "target", "--output")
    code, printed, _ = run("export", *options, "runs/dflash-trial")
    assert code == 0
    assert 'vLLM takes a draft in runs/dflash-trial for the method dflash, because of "dflash"' in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--output", "o"], "is written for its target: add --target MODEL"),
        (["--target", "WORLD/target", "--output", "o", "--temperature", "1"], "--temperature is not for a head"),
        (["--target", "WORLD/target", "--output", "eagle3"], "--output is the draft's own folder"),
        (["--target", "WORLD/target", "--output", "o", "--format", "gguf"], "format: "),
        (["--target", "WORLD/target", "--output", "held"], "must be a new folder or hold an earlier export"),
    ],
)
def test_a_wrong_call_is_one_line(run, world, folder, tmp_path, arguments, says):
    (tmp_path / "held").mkdir()
    (tmp_path / "held/mine.txt").write_text("mine")
    code, _, error = run("export", "--draft", "eagle3", *[word.replace("WORLD", str(world)) for word in arguments])
    assert code == 2
    assert says in error
    assert error.count("\n") == 1


def test_a_draft_takes_no_format_and_needs_a_temperature(run, world):
    draft = ("export", "--draft", world / "draft", "--output", "o")
    assert "--temperature must be 0 or more" in run(*draft)[2]
    assert "--format is not for a draft" in run(*draft, "--temperature", "1", "--format", "plain")[2]
