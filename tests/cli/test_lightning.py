import csv
import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tempspec.cli.parser import described
from tempspec.data.digest import digest_file


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_language_model_from_nothing_to_a_folder(run, world, tmp_path):
    code, _, error = run("fit", "--config", world / "lm.yaml")
    assert code == 0, error
    fit = tmp_path / "runs" / "lm" / "fit"
    left = ["checkpoints", "config.yaml", "environment.json", "metrics.csv", "model"]
    assert sorted(path.name for path in fit.iterdir()) == left
    environment = json.loads((fit / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["device"] == "cpu"
    assert environment["data"]["train"] == digest_file(world / "text.jsonl")
    assert AutoModelForCausalLM.from_pretrained(fit / "model").config.num_hidden_layers == 1
    checkpoint = torch.load(fit / "checkpoints/last.ckpt", weights_only=False)
    assert checkpoint["hyper_parameters"]["tokenizer"] == str(world / "target")
    assert AutoTokenizer.from_pretrained(fit / "model").get_vocab()["</s>"] == 0
    steps = [row for row in rows(fit / "metrics.csv") if row["train/loss"]]
    assert [int(row["step"]) for row in steps] == [0, 1, 2, 3]
    assert all(
        float(row[name]) > 0 for row in steps for name in ("train/grad_norm", "train/lr", "train/tokens_per_second")
    )


def test_a_run_is_continued_where_it_stopped(run, world, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = "--config", world / "lm.yaml", "--model.lr_scheduler", "ConstantLR", "--model.lr_scheduler.factor", "1"
    assert run("fit", *options, "--run", whole)[0] == 0
    assert run("fit", *options, "--run", halves, "--trainer.max_steps", 2)[0] == 0
    assert run("fit", *options, "--run", halves, "--ckpt_path", "last")[0] == 0
    models = [AutoModelForCausalLM.from_pretrained(folder / "fit" / "model") for folder in (whole, halves)]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    logged = [[row["train/loss"] for row in rows(folder / "fit" / "metrics.csv")] for folder in (whole, halves)]
    assert [loss for loss in logged[0] if loss] == [loss for loss in logged[1] if loss]


def test_a_second_run_in_a_folder_keeps_the_first_metrics(run, world, tmp_path):
    for _ in range(2):
        assert run("fit", "--config", world / "lm.yaml", "--trainer.max_steps", 1)[0] == 0
    names = [path.name for path in (tmp_path / "runs" / "lm" / "fit").iterdir()]
    assert {"metrics.csv", "metrics.1.csv"} <= set(names)


def test_validate_reads_what_fit_left(run, world, tmp_path):
    assert run("fit", "--config", world / "lm.yaml")[0] == 0
    code, printed, error = run("validate", "--config", "runs/lm/fit/config.yaml", "--ckpt_path", "last")
    assert code == 0, error
    metrics = json.loads((tmp_path / "runs" / "lm" / "validate" / "metrics.json").read_text())
    assert set(metrics) == {"val/held/nats_per_token", "val/nats_per_token"}
    assert "val/held/nats_per_token" in printed


def test_continue_from_a_folder(run, world, tmp_path):
    options = "--model.shape", "null", "--model.pretrained", world / "target", "--model.tokenizer", "null"
    code, _, error = run("fit", "--config", world / "lm.yaml", *options)
    assert code == 0, error
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "runs/lm/fit/model").config.num_hidden_layers == 2


def test_distil_validate_predict_generate(run, world, tmp_path):
    assert run("fit", "--config", world / "pair.yaml")[0] == 0
    draft = tmp_path / "runs" / "pair" / "fit" / "draft"
    assert AutoModelForCausalLM.from_pretrained(draft).config.num_hidden_layers == 1
    few = (
        "--model.sweep.max_new_tokens",
        4,
        "--model.sweep.timing_prompts",
        0,
        "--model.sweep.target_temperatures",
        "[1.0]",
    )
    for command, left in (("validate", "metrics.json"), ("predict", "predictions.parquet")):
        more = few if command == "predict" else ()
        code, _, error = run(command, "--config", world / "pair.yaml", "--model.draft", draft, *more)
        assert code == 0, error
        assert (tmp_path / "runs" / "pair" / command / left).exists()
    code, _, error = run("generate", "--config", world / "pair.yaml", "--model.sweep.max_new_tokens", 4)
    assert code == 0, error


def test_every_subcommand_reads_what_generate_wrote(run, world, tmp_path):
    code, _, err = run(
        "generate", "--config", world / "pair.yaml", "--run", tmp_path, "--model.sweep.max_new_tokens", 2
    )
    assert code == 0, err
    for command in ("fit", "validate", "test", "predict", "generate"):
        code, _, err = run(command, "--config", tmp_path / "generate/config.yaml", "--print_config")
        assert code == 0, err


def test_a_teacher_is_cached_once_and_fit_learns_from_it(run, world, tmp_path):
    teacher = ("--model.teacher.folder", tmp_path / "teacher", "--model.teacher.tokens", 5)
    line = ("generate", "--config", world / "pair.yaml", *teacher, "--cache-teacher", "--server", "null")
    code, out, err = run(*line)
    assert code == 0, err
    assert list((tmp_path / "teacher").glob("*.arrow")), out
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "teacher").glob("*.arrow")}
    assert run(*line)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in files} == files
    code, _, err = run("fit", "--config", world / "pair.yaml", *teacher, "--run", tmp_path / "cached")
    assert code == 0, err
    assert (tmp_path / "cached" / "fit" / "draft" / "model.safetensors").is_file()
    code, _, err = run("generate", "--config", world / "pair.yaml", "--cache-teacher")
    assert (code, err) == (2, "error: --cache-teacher needs model.teacher: name at least its folder\n")


def test_features_are_cached_and_a_head_learns_from_them(run, world, tmp_path):
    head = ("--model.head", "Eagle3", "--model.head.states", "[0,1,2]", "--model.draft", "null")
    features = ("--model.features.folder", tmp_path / "features", *head, "--server", "null")
    code, _, err = run("generate", "--config", world / "pair.yaml", *features, "--cache-features")
    assert code == 0, err
    assert list((tmp_path / "features").glob("*.safetensors"))
    code, _, err = run("fit", "--config", world / "pair.yaml", *features[:-2], "--run", tmp_path / "cached")
    assert code == 0, err
    assert (tmp_path / "cached" / "fit" / "head" / "model.safetensors").is_file()


def test_print_config_shows_plugins_by_their_path(run, world):
    options = "--model.divergence", "JensenShannon", "--model.divergence.beta", 0.3
    verifiers = "{block: BlockVerification, typical_03: {class_path: Typical, init_args: {epsilon: 0.3}}}"
    code, printed, _ = run(
        "fit", "--config", world / "pair.yaml", *options, "--model.verifiers", verifiers, "--print_config"
    )
    assert code == 0
    model = yaml.safe_load(printed)["model"]
    assert model["divergence"]["class_path"] == "tempspec.JensenShannon"
    assert model["divergence"]["init_args"]["beta"] == 0.3
    assert model["verifiers"]["typical_03"]["init_args"]["epsilon"] == 0.3


def test_help_names_the_plugins(run):
    code, printed, _ = run("fit", "--help")
    assert code == 0
    for name in ("JensenShannon", "Cosine", "BlockVerification", "PromptLookup", "ConfidenceThreshold"):
        assert name in printed


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "generate"])
def test_help_begins_with_the_call_and_what_it_does(run, command):
    code, printed, _ = run(command, "--help")
    usage, does, *_ = (" ".join(part.split()) for part in printed.split("\n\n"))
    assert (code, usage) == (0, f"usage: tempspec {command} --config FILE [--OPTION VALUE ...]")
    assert does == described(command)["description"]


def test_a_checkpoint_of_another_model(run, world):
    assert run("fit", "--config", world / "lm.yaml", "--trainer.max_steps", 1)[0] == 0
    options = "--config", world / "lm.yaml", "--ckpt_path", "last", "--model.shape.hidden_size", 16
    code, _, error = run("validate", *options)
    assert code == 2
    assert error.rstrip().splitlines()[-1].startswith("error: the checkpoint runs/lm/fit/checkpoints/last.ckpt")


FITTED = ("--model.sweep.draft_temperatures", "[same, fitted]", "--model.sweep.target_temperatures", "[0.0, 1.0]")
SMALL = ("--model.sweep.max_new_tokens", 4, "--model.sweep.timing_prompts", 0)


def test_predict_uses_the_draft_temperatures_of_validate(run, world, tmp_path):
    code, _, error = run("predict", "--config", world / "pair.yaml", *FITTED, *SMALL)
    assert (code, error.count("\n")) == (2, 1)
    assert "run `tempspec validate`" in error

    code, printed, error = run("validate", "--config", world / "pair.yaml", *FITTED)
    assert code == 0, error
    assert "fitted draft temperature" in printed
    path = tmp_path / "runs" / "pair" / "validate" / "draft_temperatures.json"
    fits = json.loads(path.read_text())["fits"]
    assert [fit["target_temperature"] for fit in fits] == [0.0, 1.0]
    assert all(fit["acceptance"]["value"] >= fit["same"]["value"] for fit in fits)

    code, _, error = run("predict", "--config", world / "pair.yaml", *FITTED, *SMALL)
    assert code == 0, error
    cells = rows(tmp_path / "runs" / "pair" / "predict" / "summary.csv")
    pairs = {(float(cell["target_temperature"]), float(cell["draft_temperature"])) for cell in cells}
    expected = {(fit["target_temperature"], fit["draft_temperature"]) for fit in fits}
    assert pairs == expected | {(0.0, 0.0), (1.0, 1.0)}

    other = "--model.draft", "null", "--model.draft_layers", 1, "--run", tmp_path / "runs" / "pair"
    code, _, error = run("predict", "--config", world / "pair.yaml", *FITTED, *SMALL, *other)
    assert code == 2
    assert "fitted for another pair or truncation (changed: draft)" in error
    code, _, error = run("predict", "--config", world / "pair.yaml", *FITTED, *SMALL, "--model.sweep.top_k", 3)
    assert code == 2
    assert "(changed: truncation)" in error


def test_fitted_draft_temperatures_belong_to_a_checkpoint(run, world, tmp_path):
    config = "--config", world / "pair.yaml", "--run", tmp_path / "run"
    assert run("fit", *config, "--trainer.max_steps", 1)[0] == 0
    code, _, error = run("validate", *config, *FITTED, "--ckpt_path", "last")
    assert code == 0, error
    code, _, error = run("predict", *config, *FITTED, *SMALL, "--ckpt_path", "last")
    assert code == 0, error
    code, _, error = run("predict", *config, *FITTED, *SMALL, "--before")
    assert code == 2
    assert "(changed: checkpoint)" in error


def test_an_estimate_is_printed_and_nothing_is_run(world, run, tmp_path):
    code, printed, error = run("fit", "--config", world / "pair.yaml", "--run", tmp_path / "run", "--estimate")
    assert code == 0, error
    for word in ("MiB on each device", "one", "fsdp2", "gradients", "total"):
        assert word in printed
    assert "…" not in printed
    assert not (tmp_path / "run/fit/draft").exists()
    assert "not counted" not in printed


def test_an_estimate_counts_what_fit_loads_and_says_what_is_not(world, run):
    more = ("--model.online", "{writer: target}", "--trainer.precision", "bf16-true", "--model.conditioning_rank", "2")
    code, printed, error = run("fit", "--config", world / "pair.yaml", "--estimate", *more)
    assert code == 0, error
    assert "not counted: model.online\n" in printed
    code, printed, error = run("fit", "--config", world / "pair.yaml", "--estimate", "--model.teacher", "{folder: t}")
    assert code == 0, error
    assert "\ntarget " not in printed
    selected = ("--model.selection", f"{{reference: {world}/draft}}", "--model.chunk_tokens", "8")
    code, printed, error = run("fit", "--config", world / "pair.yaml", "--estimate", *selected)
    assert code == 0, error
    assert "\nreference " in printed
    assert "not counted" not in printed
