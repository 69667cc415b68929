from dataclasses import asdict
from itertools import pairwise

import pytest
import yaml

from tempspec.cli.quickstart.own_target import steps
from tempspec.cli.quickstart.sizing import ANSWERS, PROMPTS, Rates, Sizes, fitting
from tempspec.errors import UserError
from tests.tiny import save_pair, words

RATES = Rates(start=10, read=0.001, write=0.01, draft=0.02, write_alone=0.05, draft_alone=0.05, learn=0.005)


@pytest.mark.parametrize("minutes", [8, 10, 20, 60])
def test_what_fits_takes_the_time_that_was_given(minutes):
    assert fitting(RATES, minutes).seconds == pytest.approx(60 * minutes, rel=0.05)


def test_more_time_never_means_less():
    sizes = [fitting(RATES, minutes) for minutes in range(1, 200, 7)]
    for less, more in pairwise(sizes):
        assert less.answers <= more.answers or less.prompts < more.prompts
        assert less.prompts <= more.prompts


def test_too_little_time_gives_the_least_and_says_so():
    sizes = fitting(RATES, 1)
    assert (sizes.answers, sizes.prompts) == (ANSWERS[0], PROMPTS[0])
    assert "--minutes 1 is too short here" in sizes.said(1)
    assert "too short" not in fitting(RATES, 10).said(10)


def test_a_fast_model_is_not_given_more_than_is_needed():
    fast = Rates(**{name: value / 1000 for name, value in asdict(RATES).items()})
    sizes = fitting(fast, 60)
    assert (sizes.answers, sizes.prompts) == (ANSWERS[1], PROMPTS[1])
    assert sizes.seconds < 3600


def test_sizes_are_kept_for_the_same_target_and_time(tmp_path):
    sizes = fitting(RATES, 10)
    sizes.write(tmp_path / "sizes.json", "a", 10)
    assert Sizes.read(tmp_path / "sizes.json", "a", 10) == sizes
    assert Sizes.read(tmp_path / "sizes.json", "a", 11) is None
    assert Sizes.read(tmp_path / "none.json", "a", 10) is None


def test_a_target_does_not_take_the_folder_of_another(tmp_path):
    fitting(RATES, 10).write(tmp_path / "sizes.json", "one/llama", 10)
    with pytest.raises(UserError, match="holds what was done with one/llama, got other/llama: choose another --output"):
        Sizes.read(tmp_path / "sizes.json", "other/llama", 10)


def test_a_model_is_measured_once_and_its_steps_named(tmp_path, capsys):
    save_pair(tmp_path, words(), context=512)
    target, folder = str(tmp_path / "target"), tmp_path / "q"
    first = steps(target, 3, folder)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"quickstart: measuring how fast {target} is here, a minute or two"
    assert printed[1].startswith("quickstart: about ")
    again = steps(target, 3, folder)
    assert capsys.readouterr().out.splitlines() == printed[1:]
    assert [step.name for step in first] == [step.name for step in again]
    assert [step.command for step in first] == [step.command for step in again]
    config = yaml.safe_load((folder / "configs/own.yaml").read_text("utf-8"))
    assert config["model"]["target"] == target
    assert config["model"]["draft_layers"] == 1
    assert not [value for value in str(config).split() if value.startswith("'$")]


def test_a_model_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        steps(str(tmp_path / "nowhere"), 3, tmp_path / "q")


def test_the_configuration_is_accepted(tmp_path, run, capsys):
    save_pair(tmp_path, words(), context=512)
    steps(str(tmp_path / "target"), 3, tmp_path / "q")
    capsys.readouterr()
    code, printed, error = run("generate", "--config", tmp_path / "q/configs/own.yaml", "--print_config")
    assert code == 0, error
    assert yaml.safe_load(printed)["run"] == str(tmp_path / "q/distilled")
