import importlib.util
import re
import shutil

import pytest
import torch

from tempspec.errors import UserError
from tempspec.models import hub
from tempspec.models.cutting import first_layers
from tempspec.models.digests import has_weights, weights_digest
from tempspec.models.loading import load_config, load_model, load_tokenizer, save_model
from tempspec.models.quantised import quantised
from tests.gguf_file import TEMPLATE, byte_level, small_llama, write_gguf

TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return small_llama(tokenizer)


@pytest.fixture(scope="module")
def file(model, tokenizer, tmp_path_factory):
    """A GGUF file of eight bits, alone in its folder."""
    path = tmp_path_factory.mktemp("gguf") / "small-Q8_0.gguf"
    write_gguf(path, model, tokenizer)
    return path


def logits(model, tokenizer):
    return model(torch.tensor([tokenizer(TEXT)["input_ids"]])).logits


def test_a_gguf_file_and_its_folder_load_dequantised(file, model, tokenizer):
    loaded, again = load_model(str(file)), load_model(str(file.parent))
    assert loaded.dtype == torch.float32
    assert type(loaded.lm_head) is torch.nn.Linear
    torch.testing.assert_close(logits(loaded, tokenizer), logits(model, tokenizer), rtol=0.02, atol=0.02)
    assert torch.equal(logits(again, tokenizer), logits(loaded, tokenizer))
    assert load_config(str(file)).num_hidden_layers == 2


def test_a_gguf_file_of_plain_weights_is_the_model_itself(model, tokenizer, tmp_path):
    write_gguf(tmp_path / "plain.gguf", model, tokenizer, kind="F32")
    loaded = load_model(str(tmp_path))
    torch.testing.assert_close(logits(loaded, tokenizer), logits(model, tokenizer), rtol=1e-5, atol=1e-6)
    assert quantised(str(tmp_path)) is None


def test_a_gguf_file_brings_its_tokenizer_and_template(file, tokenizer):
    own = load_tokenizer(str(file))
    assert own(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert own.decode(own(TEXT)["input_ids"]) == TEXT
    assert own.eos_token_id == tokenizer.eos_token_id
    assert own.chat_template == TEMPLATE


def test_a_gguf_file_is_parsed_once_and_read_anew_once_changed(model, tokenizer, tmp_path, capfd):
    write_gguf(tmp_path / "x.gguf", model, tokenizer)
    first = load_config(str(tmp_path))
    first.hidden_size = 1  # of a copy
    assert load_config(str(tmp_path)).hidden_size == 32
    write_gguf(tmp_path / "x.gguf", small_llama(tokenizer, layers=1), tokenizer)
    assert load_config(str(tmp_path)).num_hidden_layers == 1
    load_model(str(tmp_path))
    assert capfd.readouterr().err == ""


def test_a_dtype_for_a_gguf_file(file):
    assert load_model(str(file), dtype="bfloat16").dtype == torch.bfloat16


def test_a_draft_cut_from_a_gguf_file_is_an_ordinary_folder(file, tmp_path, tokenizer):
    target = load_model(str(file))
    draft = first_layers(target, 1)
    save_model(draft, load_tokenizer(str(file)), tmp_path / "draft")
    assert torch.equal(logits(load_model(str(tmp_path / "draft")), tokenizer), logits(draft, tokenizer))
    assert load_tokenizer(str(tmp_path / "draft")).chat_template == TEMPLATE


def test_the_words_for_a_gguf_file_name_its_type(file):
    assert quantised(str(file)) == quantised(str(file.parent)) == "dequantised from Q8_0 of small-Q8_0.gguf"
    assert quantised("someone/model-GGUF:model-Q4_K_M.gguf") == "dequantised from GGUF of model-Q4_K_M.gguf"
    assert quantised("someone/model") is None


def test_the_digest_of_a_gguf_file_goes_by_its_bytes(file, tmp_path):
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    assert weights_digest(str(copy)) == weights_digest(str(file)) == weights_digest(str(file.parent)) != str(file)
    copy.write_bytes(file.read_bytes()[:-1] + b"?")
    assert weights_digest(str(copy)) != weights_digest(str(file))
    assert has_weights(str(file))


def test_a_folders_gguf_file_counts_whatever_lies_beside_it(file, tmp_path):
    shutil.copy(file, tmp_path / "small-Q8_0.gguf")
    (tmp_path / "mmproj-small.gguf").write_bytes(b"GGUF")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")  # as of a model that was made of it
    assert load_config(str(tmp_path)).model_type == "llama"
    assert hub.weight_files(str(tmp_path)) == [tmp_path / "small-Q8_0.gguf"]


def test_several_gguf_files_are_listed(file, tmp_path):
    for name in ("a-Q4_0.gguf", "a-Q8_0.gguf", "mmproj-a.gguf"):
        (tmp_path / name).write_bytes(file.read_bytes())
    listed = f"{tmp_path}/a-Q4_0.gguf, {tmp_path}/a-Q8_0.gguf"
    with pytest.raises(UserError, match=re.escape(f"holds GGUF files, and one must be named: {listed}") + "$"):
        load_model(str(tmp_path))


def test_gguf_files_of_the_hub_are_named(monkeypatch):
    monkeypatch.setattr(hub, "_ask", lambda name, revision: (False, {"a-Q4_0.gguf", "README.md"}))
    with pytest.raises(UserError, match=r"one must be named: someone/a-GGUF:a-Q4_0\.gguf$"):
        load_model("someone/a-GGUF")
    found = hub.place("someone/a-GGUF:a-Q4_0.gguf", "v1", False)
    assert (found.path, found.revision, found.arguments()["gguf_file"]) == ("someone/a-GGUF", "v1", "a-Q4_0.gguf")


def test_a_gguf_file_without_its_package_is_one_line(file, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    with pytest.raises(UserError, match=r"needs the package gguf: pip install 'tempspec\[gguf\]'"):
        load_model(str(file))


@pytest.mark.parametrize("path", ["nothing.gguf", "./nothing.gguf", "/no/where.gguf"])
def test_a_gguf_file_that_is_not_there(path):
    with pytest.raises(UserError, match="no such file"):
        load_model(path)


def test_a_torn_gguf_file_is_one_line(file, tmp_path):
    (tmp_path / "torn.gguf").write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"torn\.gguf: the file is truncated, or it is no GGUF file") as caught:
        load_model(str(tmp_path / "torn.gguf"))
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_not_quantised_again(file):
    with pytest.raises(UserError, match=r"it is a GGUF file, which is dequantised: drop loading\.quantization"):
        load_model(str(file), quantization={"quant_method": "torchao"})
