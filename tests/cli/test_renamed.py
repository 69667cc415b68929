"""A former name of an option is read, with one line that says so."""

import inspect

import pytest
import yaml

from tempspec.cli import renamed
from tempspec.cli.options import look_ahead
from tempspec.data.text_encoding import TextEncoding
from tempspec.errors import UserError

TODAY = dict(renamed.RENAMED)


@pytest.fixture(autouse=True)
def table(monkeypatch):
    names = {
        "model.heat": "model.temperature",
        "data.prompts.*.most": "data.prompts.*.limit",
        "data.train.most": "data.train.limit",
        "seed": "seed_everything",
        "model.rows": "data.batch_size",
    }
    monkeypatch.setattr(renamed, "RENAMED", names)


def renamed_file(tmp_path, config):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, look_ahead(["fit", "--config", str(path)])


@pytest.mark.parametrize(
    ("former", "today", "named"),
    [
        ({"model": {"heat": 1, "a": 2}}, {"model": {"temperature": 1, "a": 2}}, "model.heat"),
        ({"data": {"train": {"most": 1}}}, {"data": {"train": {"limit": 1}}}, "data.train.most"),
        ({"data": {"train": [{"most": 1}, {}]}}, {"data": {"train": [{"limit": 1}, {}]}}, "data.train.most"),
        ({"data": {"prompts": {"p": {"most": 1}}}}, {"data": {"prompts": {"p": {"limit": 1}}}}, "data.prompts.*.most"),
        ({"seed": 3}, {"seed_everything": 3}, "seed"),
        ({"model": {"rows": 3}}, {"model": {}, "data": {"batch_size": 3}}, "model.rows"),
        (
            {"data": {"class_path": "D", "init_args": {"train": {"most": 1}}}},
            {"data": {"class_path": "D", "init_args": {"train": {"limit": 1}}}},
            "data.train.most",
        ),
    ],
)
def test_a_former_key_is_read_with_one_line(former, today, named, tmp_path):
    path, found = renamed_file(tmp_path, former)
    given = found.arguments[-1]
    assert yaml.safe_load(given) == today
    assert [note for note in found.notes if named in note] == [
        f"{path}: {named} is called {renamed.RENAMED[named]} now: rename it"
    ]


def test_a_configuration_of_today_is_left_to_the_parser(tmp_path):
    path, found = renamed_file(tmp_path, {"model": {"temperature": 1}})
    assert found.arguments[-1] == str(path)
    assert found.notes == ()


def test_a_former_option_is_read_with_one_line():
    found = look_ahead(["fit", "--model.heat", "2", "--model.heat.low=3", "--data.prompts.p.most=4"])
    assert found.arguments[1:] == ["--model.temperature", "2", "--model.temperature.low=3", "--data.prompts.p.limit=4"]
    assert found.notes[0] == "--model.heat is called --model.temperature now: rename it"


def test_both_names_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"model\.heat is called model\.temperature now, got both: leave out"):
        renamed_file(tmp_path, {"model": {"heat": 1, "temperature": 2}})


def test_a_class_that_moved_is_read_with_one_line(tmp_path):
    rules = {"cut": {"class_path": "tempspec.plugins.lossy.Ensemble", "init_args": {"share": 0.3}}}
    path, found = renamed_file(tmp_path, {"model": {"verifiers": rules}})
    moved = yaml.safe_load(found.arguments[-1])["model"]["verifiers"]["cut"]
    assert moved == rules["cut"] | {"class_path": "tempspec.plugins.lossy_verifiers.Ensemble"}
    (line,) = [note for note in found.notes if "Ensemble" in note]
    assert line == f"{path}: tempspec.plugins.lossy.Ensemble is called {moved['class_path']} now: rename it"


def test_a_former_name_of_this_package_leads_to_an_option():
    assert TODAY
    for former, today in TODAY.items():
        section, name = today.split(".")
        assert section == "data"
        assert name in inspect.signature(TextEncoding).parameters
        assert former.split(".")[1] not in inspect.signature(TextEncoding).parameters
