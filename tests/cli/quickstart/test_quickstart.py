from pathlib import Path

import pytest
import yaml

from tempspec.cli.quickstart import steps
from tempspec.cli.quickstart.small_pair import TEMPLATES
from tempspec.cli.steps import Step, run_steps
from tempspec.errors import UserError


class Recorder:
    """Steps that write one file each, and what was run."""

    def __init__(self, folder):
        self.folder = folder
        self.ran = []
        self.fail_at = None

    def step(self, name, depends=()):
        path = self.folder / name

        def run():
            self.ran.append(name)
            path.mkdir(exist_ok=True)
            (path / "part").touch()
            if name == self.fail_at:
                raise UserError("failed")

        return Step(name, name, f"do {name}", run, (path,), depends)

    def run(self, *names, **depends):
        self.ran = []
        run_steps([self.step(name, depends.get(name, ())) for name in names], self.folder / "steps")
        return self.ran


@pytest.fixture
def recorder(tmp_path):
    return Recorder(tmp_path)


def test_what_is_finished_is_not_run_again(recorder):
    assert recorder.run("a", "b") == ["a", "b"]
    assert recorder.run("a", "b") == []


def test_a_changed_step_and_all_behind_it_run_again(recorder):
    recorder.run("a", "b", "c")
    assert recorder.run("a", "b", "c", b=("new",)) == ["b", "c"]


def test_a_lost_outcome_is_made_again(recorder):
    recorder.run("a")
    (recorder.folder / "a" / "part").unlink()
    (recorder.folder / "a").rmdir()
    assert recorder.run("a") == ["a"]


def test_an_interrupted_step_goes_on_with_what_it_has(recorder):
    recorder.fail_at = "b"
    with pytest.raises(UserError, match="failed"):
        recorder.run("a", "b", "c")
    (recorder.folder / "b" / "earlier").touch()
    recorder.fail_at = None
    assert recorder.run("a", "b", "c") == ["b", "c"]
    assert (recorder.folder / "b" / "earlier").exists()


def test_a_changed_step_begins_anew(recorder):
    recorder.run("a")
    (recorder.folder / "a" / "earlier").touch()
    recorder.run("a", a=("new",))
    assert not (recorder.folder / "a" / "earlier").exists()


@pytest.mark.parametrize("folder", ["q", "qs #1", "qs: x", "qs {a}", "qs, y", "$q", "- 'ü\""])
def test_the_configurations_name_only_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = list(steps(Path(folder)))
    for name in TEMPLATES:
        config = yaml.safe_load(Path(folder, "configs", f"{name}.yaml").read_text("utf-8"))
        assert config["run"] == f"{folder}/{name}"
        assert config["data"]["cache_dir"] == f"{folder}/cache"
    assert all(Path(folder) in path.parents for step in made for path in step.leaves)


@pytest.mark.parametrize(("name", "command"), [("target", "fit"), ("before", "predict"), ("distilled", "predict")])
def test_every_configuration_is_accepted(name, command, run, tmp_path):
    folder = tmp_path / "qs: #1, {a}"
    list(steps(folder))
    code, printed, error = run(command, "--config", folder / "configs" / f"{name}.yaml", "--print_config")
    assert code == 0, error
    assert yaml.safe_load(printed)["run"] == str(folder / name)


def test_the_shown_commands_are_ours(tmp_path):
    commands = [step.command.split()[:2] for step in steps(tmp_path / "q")]
    assert commands[1:] == [["tempspec", name] for name in ("fit", "fit", "predict", "fit", "predict", "report")]
