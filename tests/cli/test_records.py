"""What a run says of itself is that of what finished, and what was measured is that of the draft that is there."""

import fcntl
import json
import logging
import shutil

import pytest
import yaml
from transformers import MambaConfig, MambaForCausalLM

from tempspec.models.digests import weights_digest
from tempspec.models.loading import load_tokenizer, save_model

FEW = ("--model.sweep.target_temperatures", "[1.0]", "--model.sweep.max_new_tokens", 2)
FEW = (*FEW, "--model.sweep.timing_prompts", 0)
SHORT = ("--trainer.max_steps", 1)


def record(stage):
    return {name: (stage / name).read_text() for name in ("config.yaml", "environment.json")}


def card_of(folder):
    return (folder / "fit/draft/README.md").read_text()


@pytest.fixture(scope="module")
def fitted(world, tmp_path_factory):
    """A run with a draft that was validated and decoded with."""
    from tempspec.__main__ import main

    folder = tmp_path_factory.mktemp("fitted") / "run"
    config = ["--config", str(world / "pair.yaml"), "--run", str(folder)]
    assert main(["fit", *config, *map(str, SHORT)]) == 0
    assert main(["validate", *config]) == 0
    assert main(["predict", *config, *map(str, FEW)]) == 0
    return folder


@pytest.fixture
def finished(fitted, tmp_path):
    shutil.copytree(fitted, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def told(caplog):
    """What is said by the way, as one text."""
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
        yield lambda: "\n".join(entry.getMessage() for entry in caplog.records)


def test_a_refused_predict_leaves_the_record_of_the_finished_one(run, world, finished):
    before = record(finished / "predict")
    other = ("--model.draft", "null", "--model.draft_layers", 1, "--model.sweep.top_k", 5)
    code, _, error = run("predict", "--config", world / "pair.yaml", "--run", finished, *FEW, *other)
    assert (code, error.count("\n")) == (2, 1), error
    assert record(finished / "predict") == before


def test_a_failed_validate_leaves_the_record_of_the_finished_one(run, world, finished, monkeypatch):
    before = record(finished / "validate")
    monkeypatch.setattr("tempspec.modules.validate.analytic.Measurement.count", lambda *_: 1 / 0)
    options = ("--model.validation_temperatures", "[0.3]")
    with pytest.raises(ZeroDivisionError):
        run("validate", "--config", world / "pair.yaml", "--run", finished, *options)
    assert record(finished / "validate") == before


@pytest.mark.parametrize(
    "fails", [("--model.draft", "./typo"), ("--trainer.val_check_interval", 500), ("--model.label_weight", 0.5)]
)
def test_a_fit_that_fails_at_once_leaves_the_record_and_the_card(run, world, finished, fails, monkeypatch):
    before, card = record(finished / "fit"), card_of(finished)
    if "--model.label_weight" in fails:  # a fault of ours in the first step
        monkeypatch.setattr("tempspec.modules.fit.loss.FitLoss.__call__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("fit", "--config", world / "pair.yaml", "--run", finished, *fails)
    else:
        code, _, error = run("fit", "--config", world / "pair.yaml", "--run", finished, *fails)
        assert (code, error.count("\n")) == (2, 1), error
    assert record(finished / "fit") == before
    assert run("validate", "--config", world / "pair.yaml", "--run", finished)[0] == 0
    assert card_of(finished).split("## Measured")[0] == card.split("## Measured")[0]


def test_the_card_names_what_made_the_draft_and_not_a_later_fit(run, world, finished):
    config = yaml.safe_load((finished / "fit/config.yaml").read_text())
    config["model"]["label_weight"] = 0.25
    (finished / "fit/config.yaml").write_text(yaml.safe_dump(config))
    before = card_of(finished)
    assert run("validate", "--config", world / "pair.yaml", "--run", finished)[0] == 0
    assert card_of(finished) == before


def test_a_new_draft_does_not_inherit_the_old_ones_figures(run, world, finished, told):
    assert "not measured" not in card_of(finished)
    layers = ("--model.draft_layers", 2, *SHORT)
    code, _, error = run("fit", "--config", world / "pair.yaml", "--run", finished, *layers)
    assert code == 0, error
    assert card_of(finished).count("not measured with this draft") == 2
    assert "holds rows of another draft than this one, and they stay" in told()
    code, _, error = run("report", finished)
    assert (code, error.count("measured a draft that fit has replaced since: left out")) == (2, 2), error
    rows = (finished / "predict/predictions.parquet").read_bytes()
    code, _, error = run("predict", "--config", world / "pair.yaml", "--run", finished, *FEW)
    assert code == 2
    assert "changed: draft" in error
    assert (finished / "predict/predictions.parquet").read_bytes() == rows
    assert run("validate", "--config", world / "pair.yaml", "--run", finished)[0] == 0
    assert card_of(finished).count("not measured with this draft") == 1
    assert run("report", finished)[0] == 0
    page = (finished / "report/report.html").read_text()
    assert "predict measured a draft that fit has replaced since: left out" in page


def test_a_run_that_was_copied_goes_on_with_its_checkpoint(run, world, finished, tmp_path):
    config = ("--config", world / "pair.yaml", *FEW, "--ckpt_path")
    shutil.rmtree(finished / "predict")
    code, _, error = run("predict", "--run", finished, *config, finished / "fit/checkpoints/last.ckpt")
    assert code == 0, error
    shutil.copytree(finished, tmp_path / "copy", copy_function=shutil.copyfile)
    code, _, error = run("predict", "--run", tmp_path / "copy", *config, tmp_path / "copy/fit/checkpoints/last.ckpt")
    assert code == 0, error


def test_another_attention_or_dtype_is_another_pair(run, world, finished):
    options = ("--config", world / "pair.yaml", "--run", finished, *FEW, "--model.sweep.draft_temperatures", "fitted")
    assert run("validate", *options)[0] == 0
    code, _, error = run("predict", *options, "--model.loading.dtype", "bfloat16")
    assert code == 2
    assert "(changed: loading)" in error


def test_rows_of_an_earlier_version_are_refused_and_reported(run, world, finished):
    origin = finished / "predict/predictions.origin.json"
    held = json.loads(origin.read_text())
    origin.write_text(json.dumps(held | {"target": f"{'0f' * 8} ModelOptions()", "draft": "1e" * 8}))
    metrics = finished / "predict/metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"measured": None}))
    code, _, error = run("predict", "--config", world / "pair.yaml", "--run", finished, *FEW)
    assert (code, error.count("\n")) == (2, 1)
    assert "rows of an earlier version of tempspec" in error
    assert run("report", finished)[0] == 0
    assert "of an earlier version of tempspec" in (finished / "report/report.html").read_text()


def test_validate_and_predict_measure_what_fit_left_and_say_so(run, world, finished, told):
    draft = weights_digest(finished / "fit/draft")
    for stage in ("validate", "predict"):
        assert json.loads((finished / stage / "metrics.json").read_text())["measured"]["draft"] == draft
    before = ("--run", finished.parent / "before", "--before")
    assert run("validate", "--config", world / "pair.yaml", "--run", finished)[0] == 0
    assert f"measuring the draft that this run trained, {finished}/fit/draft" in told()
    assert run("validate", "--config", world / "pair.yaml", "--run", finished, "--before")[0] == 0
    measured = json.loads((finished / "validate/metrics.json").read_text())["measured"]["draft"]
    assert measured == weights_digest(world / "draft")
    assert run("validate", "--config", finished / "validate/config.yaml", "--print_config", *before[:2])[0] == 0
    assert run("validate", "--config", finished / "validate/config.yaml")[0] == 0
    said = "measuring the draft that the configuration names, as before: true asks for"
    assert f"{said}; not {finished}/fit/draft" in told()


@pytest.mark.parametrize("named", [("--model.draft", "WORLD/draft"), ("--ckpt_path", "last")])
def test_what_the_command_line_names_is_measured(named, run, world, finished):
    named = [part.replace("WORLD", str(world)) for part in named]
    assert run("validate", "--config", world / "pair.yaml", "--run", finished, *named)[0] == 0
    config = yaml.safe_load((finished / "validate/config.yaml").read_text())
    assert config["model"]["draft"] == f"{world}/draft"


def test_a_fit_without_a_draft_yet_is_said(run, world, tmp_path, told):
    (tmp_path / "run/fit").mkdir(parents=True)
    assert run("validate", "--config", world / "pair.yaml", "--run", tmp_path / "run")[0] == 0
    assert "has left no draft yet: measuring what the configuration names" in told()


def test_a_draft_of_a_fit_before_the_last_is_called_so(run, world, finished, told):
    config = finished / "fit/config.yaml"
    config.write_text(config.read_text().replace("max_steps: 1", "max_steps: 7"))  # of a fit that was killed
    assert run("validate", "--config", world / "pair.yaml", "--run", finished)[0] == 0
    assert f"measuring the draft of an earlier fit, {finished}/fit/draft, as the last fit of this run has" in told()


def test_a_language_model_is_validated_as_it_was_trained(run, world, tmp_path):
    assert run("fit", "--config", world / "lm.yaml", *SHORT)[0] == 0
    found = []
    for named in (("--ckpt_path", "last"), ()):
        assert run("validate", "--config", world / "lm.yaml", *named)[0] == 0
        found.append(json.loads((tmp_path / "runs/lm/validate/metrics.json").read_text())["val/nats_per_token"])
    assert found[1] == pytest.approx(found[0])


def test_before_is_an_option_of_what_measures(run, world):
    code, _, error = run("fit", "--config", world / "pair.yaml", "--before")
    assert code == 2
    assert "--before is an option of validate, test, predict, got it with fit" in error


def test_a_second_fit_in_a_folder_is_one_line(run, world, tmp_path):
    (tmp_path / "run/fit").mkdir(parents=True)
    lock = (tmp_path / "run/fit/.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # as another process would
    code, _, error = run("fit", "--config", world / "pair.yaml", "--run", tmp_path / "run")
    lock.close()
    assert (code, error.count("\n")) == (2, 1)
    assert "is in use by another run" in error
    assert not (tmp_path / "run/fit/metrics.csv").exists()
    assert run("fit", "--config", world / "pair.yaml", "--run", tmp_path / "run", *SHORT)[0] == 0


def test_a_missing_draft_is_said_before_text_is_read(run, world, monkeypatch):
    monkeypatch.setattr("tempspec.data.module.TextDataModule.prepare_data", lambda *_: pytest.fail("read"))
    code, _, error = run("fit", "--config", world / "pair.yaml", "--model.draft", "./typo")
    assert (code, error) == (
        2,
        "error: no such folder: './typo'; expected a folder written by save_pretrained, a .gguf file, a hub name, or "
        "hub/name:file.gguf\n",
    )


REFUSED = {
    "fit": ("--data.cache_dir", "/dev/null/no"),
    "validate": ("--data.cache_dir", "/dev/null/no"),
    "predict": ("--data.prompts", '{"p": {"path": "./none.jsonl"}}'),
    "generate": ("--data.prompts", '{"p": {"path": "./none.jsonl"}}'),
}


TYPO, ROUND = ("--model.target", "./typo"), ("--model.sweep.compile", "round")  # the second needs a GPU
OTHERS = [("fit", TYPO), ("predict", ROUND), ("generate", ROUND)]


@pytest.mark.parametrize(("command", "fault"), [*REFUSED.items(), *OTHERS])
def test_a_refused_command_leaves_no_empty_folder(run, world, tmp_path, command, fault):
    made = tmp_path / "new/run"
    code, _, error = run(command, "--config", world / "pair.yaml", "--run", made, *fault)
    assert (code, error.count("\n")) == (2, 1), error
    assert not made.parent.exists()
    made.mkdir(parents=True)
    assert run(command, "--config", world / "pair.yaml", "--run", made, *fault)[0] == 2
    assert not any(made.iterdir())  # the user's own folder stays


def test_the_folder_of_a_run_leads_to_its_draft(run, world, finished):
    for folder in (finished, finished / "fit"):
        code, _, error = run("predict", "--config", world / "pair.yaml", "--model.draft", folder)
        assert code == 2
        assert f"is the folder of a run: name the model in it, {finished}/fit/draft" in error


def test_an_undecodable_draft_is_refused_before_training(run, world, tmp_path, monkeypatch):
    shutil.copytree(world / "draft", tmp_path / "recurrent")
    config = MambaConfig(vocab_size=16, hidden_size=8, state_size=4, num_hidden_layers=1, eos_token_id=0)
    save_model(MambaForCausalLM(config), load_tokenizer(str(world / "draft")), tmp_path / "recurrent")
    monkeypatch.setattr(
        "tempspec.modules.distillation.DistillationModule.training_step", lambda *_: pytest.fail("trained")
    )
    options = ("--model.draft", tmp_path / "recurrent", "--model.loading.attn_implementation", "eager")
    code, _, error = run("fit", "--config", world / "pair.yaml", *options)
    assert code == 2
    assert "keep no key-value cache" in error


def test_generate_does_not_ask_for_the_draft(run, world, tmp_path):
    options = ("--model.draft", "./typo", "--run", tmp_path, "--model.sweep.max_new_tokens", 2)
    code, _, error = run("generate", "--config", world / "pair.yaml", *options)
    assert code == 0, error
