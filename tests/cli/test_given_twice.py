"""What is given in several places, or in another order: one rule for each, and nothing is lost."""

import os
import threading

import pytest
import yaml

from tempspec.cli.options import look_ahead
from tempspec.data.digest import digest_file
from tempspec.decoding.sweep import Sweep
from tempspec.modules.fit.teacher_cache import CachedTeacher


def printed(run, *arguments):
    code, out, error = run(*arguments, "--print_config")
    assert code == 0, error
    return yaml.safe_load(out)


def with_model(tmp_path, world, **model):
    config = yaml.safe_load((world / "pair.yaml").read_text())
    config["model"] |= model
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "c.yaml"


@pytest.mark.parametrize("config", [("--config", "C"), ("--config=C",), ("-c", "C")])
def test_an_option_in_front_of_the_configuration_counts(config, run, world):
    config = [part.replace("C", str(world / "pair.yaml")) for part in config]
    found = printed(run, "predict", "--model.sweep.max_new_tokens", 4, "--run", "mine", *config)
    assert (found["model"]["sweep"]["max_new_tokens"], found["run"]) == (4, "mine")


def test_several_configurations_keep_their_order(run, world, tmp_path):
    for name, batch in (("a", 5), ("b", 6)):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{batch_size: {batch}}}\n")
    order = ("--config", world / "pair.yaml", "--trainer.max_steps", 7, "--config", "a.yaml", "--config", "b.yaml")
    found = printed(run, "fit", *order)
    assert (found["data"]["batch_size"], found["trainer"]["max_steps"], found["run"]) == (6, 7, "runs/b")


def test_a_draft_on_the_command_line_wins_over_the_files_layers(run, world, tmp_path):
    config = with_model(tmp_path, world, draft=None, draft_layers=1, draft_width=4)
    found = printed(run, "predict", "--config", config, "--model.draft", world / "draft")["model"]
    assert (found["draft"], found["draft_layers"], found["draft_width"]) == (f"{world}/draft", None, None)


def test_layers_on_the_command_line_win_over_the_files_draft(run, world):
    found = printed(run, "fit", "--config", world / "pair.yaml", "--model.draft_layers", 1)["model"]
    assert (found["draft"], found["draft_layers"]) == (None, 1)


def test_a_later_configuration_wins_over_an_earlier_one(run, world, tmp_path):
    (tmp_path / "b.yaml").write_text("model: {draft_layers: 1}\n")
    found = printed(run, "fit", "--config", world / "pair.yaml", "--config", "b.yaml")["model"]
    assert (found["draft"], found["draft_layers"]) == (None, 1)


def test_two_drafts_on_one_level_are_an_error(run, world, tmp_path):
    both = ("--model.draft", world / "draft", "--model.draft_layers", 1)
    config = with_model(tmp_path, world, draft_layers=1)
    for line in (("--config", world / "pair.yaml", *both), ("--config", config)):
        code, _, error = run("fit", *line)
        assert code == 2
        assert "got both model.draft and model.draft_layers" in error


@pytest.mark.parametrize(
    ("named", "option", "gone"),
    [
        ({"teacher": {"folder": "t"}}, ("--model.online.share", 0.5), "teacher"),
        ({"online": {"share": 0.5}}, ("--model.teacher.folder", "t"), "online"),
        ({"selection": {"reference": "r"}}, ("--model.teacher.folder", "t"), "selection"),
    ],
)
def test_other_options_that_exclude_each_other_follow_the_rule(named, option, gone, run, world, tmp_path):
    found = printed(run, "fit", "--config", with_model(tmp_path, world, **named), *option)
    assert found["model"][gone] is None


def test_a_pretrained_model_wins_over_the_files_shape(run, world):
    found = printed(run, "fit", "--config", world / "lm.yaml", "--model.pretrained", world / "target")
    assert found["model"]["shape"] is None


def test_caching_features_wins_over_the_files_server(run, world, tmp_path):
    (tmp_path / "b.yaml").write_text("server: http://a\n")
    line = ("generate", "--config", world / "pair.yaml", "--config", "b.yaml")
    assert printed(run, *line, "--cache-features")["server"] is None
    assert printed(run, *line, "--cache-teacher")["server"] == "http://a"


def test_a_server_is_the_teacher_of_the_files_cache(run, world, tmp_path):
    (tmp_path / "b.yaml").write_text("cache_teacher: true\n")
    line = ("generate", "--config", world / "pair.yaml", "--config", "b.yaml", "--server", "http://a")
    found = printed(run, *line)
    assert (found["cache_teacher"], found["server"]) == (True, "http://a")


def test_seed_everything_sets_every_seed_that_is_not_given(run, world, tmp_path):
    found = printed(run, "fit", "--config", world / "pair.yaml", "--seed_everything", 7, "--model.sweep.top_k", 3)
    assert (found["data"]["seed"], found["model"]["seed"], found["model"]["sweep"]["seed"]) == (7, 7, 7)
    config = with_model(tmp_path, world, seed=3)
    config.write_text(config.read_text() + "seed_everything: 8\n")
    found = printed(run, "fit", "--config", config, "--model.sweep.seed", 4)
    assert (found["data"]["seed"], found["model"]["seed"], found["model"]["sweep"]["seed"]) == (8, 3, 4)


def test_without_seed_everything_seeds_are_what_they_were(run, world):
    found = printed(run, "fit", "--config", world / "pair.yaml")
    assert (found["seed_everything"], found["data"]["seed"], found["model"]["seed"]) == (1, 0, 0)
    found = printed(run, "fit", "--config", world / "lm.yaml", "--seed_everything", 5)
    assert found["data"]["seed"] == 5


def test_two_seeds_are_two_drafts_and_one_seed_is_one(run, world, tmp_path):
    options = ("--config", world / "pair.yaml", "--trainer.max_steps", 2)
    digests = []
    for name, seed in (("a", 1), ("b", 2), ("c", 2)):
        code, _, error = run("fit", *options, "--run", tmp_path / name, "--seed_everything", seed)
        assert code == 0, error
        digests.append(digest_file(tmp_path / name / "fit/draft/model.safetensors"))
    assert digests[0] != digests[1] == digests[2]
    config = yaml.safe_load((tmp_path / "b/fit/config.yaml").read_text())
    assert (config["data"]["seed"], config["model"]["seed"]) == (2, 2)


def test_seeds_that_a_configuration_names_are_said_to_stay(world, tmp_path):
    config = with_model(tmp_path, world, seed=3)
    notes = look_ahead(["fit", "--config", str(config), "--seed_everything", "5"]).notes
    assert notes == ("seed_everything 5 leaves alone what the configuration names: model.seed 3",)
    assert look_ahead(["fit", "--config", str(config), "--seed_everything", "3"]).notes == ()


@pytest.mark.parametrize("text", ["", "# nothing but a remark\n"])
def test_an_empty_configuration_is_said_to_be_empty(text, run, tmp_path):
    (tmp_path / "empty.yaml").write_text(text)
    code, _, error = run("fit", "--config", "empty.yaml")
    assert code == 2
    assert error == "error: empty.yaml: expected sections such as model: and data:, got an empty file\n"


def test_a_configuration_from_a_pipe_is_read(run, world, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    text = (world / "pair.yaml").read_text()
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,))
    writer.start()
    found = printed(run, "fit", "--config", tmp_path / "pipe", "--data.batch_size", 3)
    writer.join()
    assert (found["model"]["draft"], found["data"]["batch_size"]) == (f"{world}/draft", 3)


@pytest.mark.parametrize("value", ["0.7", "[0.7]", "0"])
def test_a_number_is_a_list_of_one_temperature(value, run, world):
    names = ("target_temperatures", "generation_temperatures")
    options = [word for name in names for word in (f"--model.sweep.{name}", value)]
    printed(run, "predict", "--config", world / "pair.yaml", *options, "--model.validation_temperatures", value)
    assert Sweep(target_temperatures=0.7).target_temperatures == [0.7]
    assert CachedTeacher("t", temperatures=1.5).temperatures == [1.5]
