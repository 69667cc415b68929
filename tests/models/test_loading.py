import json
import shutil

import pytest
import torch

from tempspec.errors import UserError
from tempspec.models.conditioning import condition
from tempspec.models.loading import (
    check_vocabulary,
    load_config,
    load_model,
    load_tokenizer,
    real_vocabulary,
    save_model,
)
from tests.tiny import llama, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "target"
    save_model(llama(layers=3), tokenizer(["?", "a", "b"]), folder)
    return folder


def test_saving_and_loading_gives_the_same_model(folder):
    model = load_model(str(folder))
    token_BT = torch.tensor([[1, 2, 3]])
    assert not model.training
    torch.testing.assert_close(model(token_BT).logits, llama(layers=3)(token_BT).logits, rtol=0, atol=0)
    assert load_tokenizer(str(folder)).get_vocab() == {"?": 0, "a": 1, "b": 2}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["target"]


def test_saving_over_a_folder_replaces_it(tmp_path):
    save_model(llama(layers=3), tokenizer(["?", "a"]), tmp_path / "x")
    save_model(llama(), None, tmp_path / "x")
    assert load_model(str(tmp_path / "x")).config.num_hidden_layers == 1
    assert not (tmp_path / "x" / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_saved_files_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "new").touch()
    save_model(condition(llama(layers=3), rank=1), tokenizer(["?", "a"]), tmp_path / "x")
    assert (tmp_path / "x" / "conditioning.safetensors").exists()
    assert {file.stat().st_mode for file in (tmp_path / "x").iterdir()} == {(tmp_path / "new").stat().st_mode}


@pytest.mark.parametrize(("asked", "got"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_dtype(tmp_path, asked, got):
    save_model(llama(layers=3).bfloat16(), None, tmp_path / "x")
    assert load_model(str(tmp_path / "x"), dtype=asked).dtype == got


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def with_weights_out_of_reach(folder):
    """A broken link, because nothing is out of reach of root by its permissions."""
    without_weights(folder)
    (folder / "model.safetensors").symlink_to("nowhere")


def with_pickle_only(folder):
    without_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "cannot load a model"),
    "no weights": (without_weights, "model.safetensors"),
    "weights out of reach": (with_weights_out_of_reach, "model.safetensors is there but cannot be read"),
    "only a pickle": (with_pickle_only, "pytorch_model.bin, and only safetensors are read: convert it"),
    "torn weights": (lambda folder: (folder / "model.safetensors").write_text("torn"), "cannot load a model"),
    "other shapes": (lambda folder: edit_config(folder, hidden_size=32), "a checkpoint of another model"),
    "more layers": (lambda folder: edit_config(folder, num_hidden_layers=5), "a checkpoint of another model"),
    "an encoder": (lambda folder: edit_config(folder, model_type="bert"), "not a causal language model"),
    "an encoder-decoder": (lambda folder: edit_config(folder, model_type="t5"), "not a causal language model"),
    "unknown architecture": (lambda folder: edit_config(folder, model_type="nobody"), "nobody"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot load a model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_line(folder, tmp_path, case):
    damage, says = BROKEN[case]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(UserError, match=says) as caught:
        load_model(str(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["./nothing", "/nothing/here", "~/nothing-here", "runs/a/fit/draft", "runs/", ""])
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_what_can_only_be_a_folder_is_not_asked_of_the_hub(load, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no runs/ of anyone's
    with pytest.raises(UserError, match="no such folder"):
        load(path)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(UserError, match="is a file"):
        load_model(str(folder / "config.json"))


@pytest.mark.parametrize(
    ("name", "hint"), [("last.ckpt", "; a checkpoint goes to --ckpt_path"), ("model.safetensors", ".gguf")]
)
def test_a_file_of_weights_is_not_a_model(tmp_path, name, hint):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"is a file; expected a folder written by save_pretrained, .*{hint}$"):
        load_model(str(tmp_path / name))


@pytest.mark.parametrize("inner", ["fit/draft", "fit/model", "draft", "model"])
@pytest.mark.parametrize("load", [load_config, load_model, load_tokenizer])
def test_a_run_folder_names_the_model_in_it(folder, tmp_path, load, inner):
    shutil.copytree(folder, tmp_path / inner)
    with pytest.raises(UserError, match=f"is the folder of a run: name the model in it, {tmp_path / inner}$"):
        load(str(tmp_path))


def test_a_lora_adapter_is_to_be_merged_first(folder, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    shutil.copy(folder / "tokenizer.json", tmp_path)
    shutil.copy(folder / "tokenizer_config.json", tmp_path)
    with pytest.raises(UserError, match=r"is a LoRA adapter, not a model: merge it first.*merge_and_unload\(\)"):
        load_model(str(tmp_path))
    assert load_tokenizer(str(tmp_path)).get_vocab() == {"?": 0, "a": 1, "b": 2}


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_hub_name_without_network(load, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens on the discard port
    with pytest.raises(UserError, match="the hub cannot be reached") as caught:
        load("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer; expected tokenizer\.json"):
        load_tokenizer(str(tmp_path / "copy"))


@pytest.mark.parametrize(("head", "expected"), [(16, 3), (2, 2)])
def test_real_vocabulary(head, expected):
    assert real_vocabulary(tokenizer(["?", "a", "b"]), llama(vocabulary=head)) == expected


def test_one_vocabulary_passes():
    check_vocabulary(tokenizer(["?", "a", "b"]), tokenizer(["?", "a", "b"]))


@pytest.mark.parametrize(("target", "draft", "more"), [("?ab", "?abp", "draft"), ("?abpq", "?ab", "target")])
def test_more_ids_on_one_side_are_one_line(caplog, target, draft, more):
    """As a `[PAD]` that was added to one of two tokenizers of a family."""
    with caplog.at_level("INFO"):
        check_vocabulary(tokenizer(target), tokenizer(draft))
    (line,) = caplog.messages
    assert line.startswith(f"the {more}'s tokenizer has {abs(len(target) - len(draft))} more than the ")


def test_two_meanings_of_an_id_are_refused():
    with pytest.raises(
        UserError, match=r"but 2 tokens differ .*: 'b' \(2 and none\), 'c' \(none and 2\); choose a draft"
    ):
        check_vocabulary(tokenizer(["?", "a", "b"]), tokenizer(["?", "a", "c"]))


def test_other_vocabularies_are_named():
    with pytest.raises(UserError, match=r"3 tokens differ .*'a' \(1 and 2\), 'b' \(2 and 1\), 'c' \(none and 3\)"):
        check_vocabulary(tokenizer(["?", "a", "b"]), tokenizer(["?", "b", "a", "c"]))
