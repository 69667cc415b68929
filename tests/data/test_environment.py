import json

import pytest

from tempspec.data.digest import digest_file
from tempspec.data.environment import data_digests, describe_environment, hardware, write_environment
from tempspec.data.sources import Source


@pytest.fixture
def source(tmp_path):
    (tmp_path / "text.txt").write_text("one")
    return Source(str(tmp_path / "text.txt"))


def test_the_record_names_versions_hardware_data_and_facts(source, tmp_path):
    folder = tmp_path / "fit"
    folder.mkdir()
    file = write_environment(folder, describe_environment({"train": [source]}, device="cpu", processes=1))
    record = json.loads(file.read_text())
    assert list(folder.iterdir()) == [file]
    assert {"python", "tempspec", "torch"} <= set(record["versions"])
    assert record["data"] == {"train": digest_file(source.file)}
    assert (record["device"], record["processes"]) == ("cpu", 1)


def test_several_sources_of_one_name_are_numbered(source):
    assert list(data_digests({"train": [source, Source("hub/data")], "prompts/chat": [source]})) == [
        "train/0",
        "train/1",
        "prompts/chat",
    ]


def test_the_machine_has_a_processor_and_cores():
    found = hardware()
    assert found["processor"]
    assert found["cores"] >= 1
