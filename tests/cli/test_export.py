"""A head in another format, or at one temperature; of drafts it is tested with the conditioned ones."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tempspec.models.conditioning import condition, is_conditioned, set_temperature
from tempspec.models.eagle3 import Eagle3
from tempspec.models.head_draft import save_head
from tempspec.models.loading import load_model, load_tokenizer, save_model
from tempspec.models.tapping import head_target, tapped


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


@pytest.fixture
def conditioned(world, tmp_path):
    """A head's folder whose changes by temperature are large, trained from 0.5 to 2, and the head."""
    target, kind = load_model(str(world / "target")), Eagle3(states=[0, 1, 2])
    head = condition(kind.build(head_target(target)), 2).train()
    for name, value in head.named_parameters():
        value.data.normal_(std=0.3) if name.endswith((".up", "lm_head.weight")) else None
    set_temperature(head, torch.tensor([0.5, 2.0]))
    save_head(kind, head.eval(), target, tmp_path / "eagle3-conditioned", torch.float32)
    return tmp_path / "eagle3-conditioned", head, target


def logits(head, target, temperature=None):
    torch.manual_seed(0)
    set_temperature(head, temperature)
    text = torch.arange(14).view(2, 7)
    with torch.no_grad():
        out = tapped(target, head.states, input_ids=text, use_cache=False)
        return torch.stack(list(map(head.logits, head.unrolled(out.states, text, target.get_input_embeddings(), 2))))


@pytest.mark.parametrize(("temperature", "format"), [(0.7, "plain"), (2.0, "speculators"), (9.0, "plain")])
def test_a_conditioned_head_is_folded(run, world, conditioned, tmp_path, temperature, format):
    folder, head, target = conditioned
    options = ("--target", world / "target", "--temperature", temperature, "--format", format)
    code, printed, _ = run("export", "--draft", folder, *options, "--output", tmp_path / "eagle3-folded")
    assert (code, printed.strip()) == (0, f"{tmp_path}/eagle3-folded: the head in the {format} format at temperature "
                                          f"{temperature:g}")  # fmt: skip
    folded = Eagle3().load(tmp_path / "eagle3-folded", head_target(target))
    assert not is_conditioned(folded)
    assert run("check-head", tmp_path / "eagle3-folded", "--target", world / "target", "--tokens", "0")[0] == 0
    found = logits(folded, target)
    torch.testing.assert_close(found, logits(head, target, temperature), rtol=1e-5, atol=1e-5)
    for other in (0.5, 1.0, 1.4):
        assert not torch.allclose(found, logits(head, target, other), atol=1e-2)


def test_a_conditioned_head_is_not_served_as_it_is(run, world, conditioned, tmp_path):
    folder, *_ = conditioned
    options = ("--target", world / "target", "--output", tmp_path / "out")
    code, _, error = run("export", "--draft", folder, *options)
    assert (code, "--temperature must be 0 or more and finite, got None" in error) == (2, True)
    code, printed, _ = run("check-head", folder, "--target", world / "target")
    assert (code, printed.count("fault: "), printed.count("T = ")) == (1, 1, 0)
    assert "its acceptance is not measured: an engine has it without what the temperature changes" in printed
    assert "conditioning.safetensors is in the folder: no engine knows a head that is conditioned" in printed


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
        (["--target", "WORLD/target", "--output", "o", "--temperature", "1"], "--temperature is not for a head that"),
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


def test_a_draft_gets_the_targets_vocab_size(run, world, tmp_path):
    """vLLM compares the two before it loads a draft model."""
    larger = load_model(str(world / "target"))
    larger.resize_token_embeddings(larger.config.vocab_size + 40, mean_resizing=False)
    save_model(larger, load_tokenizer(str(world / "target")), tmp_path / "larger")
    to = ("--target", tmp_path / "larger", "--output", tmp_path / "wide")
    code, printed, _ = run("export", "--draft", world / "draft", *to)
    size = larger.config.vocab_size
    assert code == 0
    assert printed.startswith(f"{tmp_path / 'wide'}: the draft with vocab_size {size}; the ids that were added have at")
    first, wide = load_model(str(world / "draft")), load_model(str(tmp_path / "wide"))
    assert wide.config.vocab_size == size
    text = torch.arange(8)[None]
    with torch.no_grad():
        own = first(input_ids=text).logits
        assert torch.equal(wide(input_ids=text).logits[..., : own.shape[-1]], own)
    assert f"vocab_size {size}" in (tmp_path / "wide/README.md").read_text()
    again = ("--target", tmp_path / "larger", "--output", tmp_path / "more")
    assert "it serves as it is" in run("export", "--draft", tmp_path / "wide", *again)[2]
    assert "--temperature is not for a draft" in run("export", "--draft", world / "draft", *to, "--temperature", "1")[2]
