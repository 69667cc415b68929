import json

import pytest

from tempspec.data.digest import digest_file, digest_folder
from tempspec.data.provenance import Provenance, write_provenance


@pytest.fixture
def record():
    return Provenance(
        target="models/target",
        target_revision=None,
        weights_digest="ab",
        generation_temperatures=[0.7],
        top_k=0,
        top_p=0.9,
        min_p=0.0,
        seed=3,
        prompt_sets={"chat": "cd", "hub": None},
        count=12,
    )


def test_a_record_comes_back_as_it_was_written(tmp_path, record):
    file = write_provenance(tmp_path, record)
    assert Provenance(**json.loads(file.read_text())) == record
    assert list(tmp_path.iterdir()) == [file]
    assert set(record.versions) == {"tempspec", "torch", "lightning", "transformers"}


def test_a_folder_digest_follows_names_and_bytes_not_the_place(tmp_path):
    for name, files in {
        "a": {"x": "1", "y/z": "2"},
        "b": {"y/z": "2", "x": "1"},
        "c": {"x": "2", "y/z": "1"},
        "d": {"x": "1", "z": "2"},
    }.items():
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
    digests = {name: digest_folder(tmp_path / name) for name in "abcd"}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3
    assert digest_folder(tmp_path / "a", "x") == digest_folder(tmp_path / "d", "x")
    assert digest_file(tmp_path / "a" / "x") == digest_file(tmp_path / "d" / "x")
