import os
import shutil

import pytest
from transformers import LlamaForCausalLM

from tempspec.models.digests import file_digest, of_earlier_version, weights_digest
from tests.tiny import llama


@pytest.fixture
def folder(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_key_value_heads": 2}
    llama(0, 4096, 6, **sizes).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def change(file, place):
    """One byte of a file, which keeps its size and its time."""
    held, content = file.stat(), bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(held.st_atime_ns, held.st_mtime_ns + 1))


def test_a_byte_in_the_middle_of_the_weights_changes_the_digest(folder):
    before, file = weights_digest(folder), folder / "model.safetensors"
    assert file.stat().st_size > 3 << 20
    change(file, file.stat().st_size // 2)
    assert weights_digest(folder) != before


def test_a_copy_with_other_times_has_the_same_digest(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert weights_digest(tmp_path / "copy") == weights_digest(folder)


def test_every_file_of_a_sharded_folder_counts(folder):
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="1MB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    seen = {weights_digest(folder)}
    for file in files:
        change(file, file.stat().st_size - 5)
        seen.add(weights_digest(folder))
    assert len(seen) == len(files) + 1


def test_a_digest_is_read_once_while_a_file_stays_as_it_is(folder, monkeypatch):
    file = folder / "model.safetensors"
    first = file_digest(file)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert file_digest(file) == first


def test_a_single_file_of_weights_is_known_by_its_bytes(folder, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (folder / "m.gguf").write_bytes(b"GGUF")
    assert weights_digest(tmp_path / "m.gguf") == file_digest(folder / "m.gguf")


def test_a_hub_name_is_known_by_the_commit_that_is_cached(tmp_path, monkeypatch):
    held = tmp_path / "snapshots" / "c0ffee" / "config.json"
    monkeypatch.setattr(
        "tempspec.models.digests.try_to_load_from_cache", lambda name, *_, **__: None if ":" in name else str(held)
    )
    assert weights_digest("some/model") == "some/model c0ffee"
    assert weights_digest("some/model:q4.gguf") == "some/model:q4.gguf c0ffee"
    monkeypatch.setattr("tempspec.models.digests.try_to_load_from_cache", lambda *_, **__: None)
    assert weights_digest("some/model") == "some/model"


def test_digests_of_earlier_versions_are_told_from_todays(folder):
    assert of_earlier_version("0f" * 8)
    assert of_earlier_version(f"{'0f' * 8} ModelOptions(dtype='auto')")
    assert not of_earlier_version(weights_digest(folder))
