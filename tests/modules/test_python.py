"""The modules from Python: plugins by name, a plain Trainer stage after stage, results without the command line."""

import json
import logging
import os
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch

import tempspec as ts
from tempspec.errors import UserError
from tempspec.modules.named import plugin


def test_a_name_makes_the_plugin_that_yaml_makes(pair):
    module = ts.DistillationModule(
        str(pair / "target"),
        divergence="NegativeLogAcceptance",
        temperature="TeacherEntropy",
        verifiers={"block": "BlockVerification", "token": ts.TokenwiseRejection()},
        drafter="PromptLookup",
        length="SVIP",
    )
    assert type(module.divergence) is ts.NegativeLogAcceptance
    assert type(module.temperature) is ts.TeacherEntropy
    assert {name: type(rule) for name, rule in module.runner.verifiers.items()} == {
        "block": ts.BlockVerification,
        "token": ts.TokenwiseRejection,
    }
    assert (type(module.runner.drafter), type(module.runner.length)) == (ts.PromptLookup, ts.SVIP)


def test_a_wrong_name_has_the_registrys_hint():
    with pytest.raises(UserError, match="got 'FowardKL': did you mean 'ForwardKL'"):
        ts.DistillationModule("target", divergence="FowardKL")
    with pytest.raises(
        UserError, match=r"Uniform needs options, got only its name: .*tempspec\.Uniform\(low=\.\.\., hi"
    ):
        plugin("schedules", "Uniform")


@pytest.fixture
def ran(pair, tmp_path, monkeypatch, caplog):
    """The script of docs/python.md on the tiny pair; its module, trainer and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)
    data = ts.TextDataModule(
        str(pair / "target"),
        train=str(pair / "corpus.jsonl"),
        prompts={"chat": str(pair / "prompts.jsonl")},
        max_length=24,
    )
    module = ts.DistillationModule(
        str(pair / "target"),
        draft_layers=1,
        divergence="NegativeLogAcceptance",
        temperature=ts.Uniform(0.5, 1.5),
        sweep=ts.Sweep([0.0, 1.0], max_new_tokens=6, timing_prompts=1),
    )
    trainer = L.Trainer(max_steps=9, accelerator="cpu")
    trainer.fit(module, data)
    return module, trainer, data


def test_stages_follow_each_other_in_a_plain_trainer(ran, caplog):
    module, trainer, data = ran
    caplog.clear()
    trainer.validate(module, data)
    trainer.predict(module, data)
    said = [record.getMessage() for record in caplog.records]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [line for line in said if "override" in line]
    acceptance = module.acceptance()
    assert acceptance.one(target_temperature=1.0, draft_temperature=1.0)["acceptance"] == pytest.approx(
        trainer.callback_metrics.get("val/train-held-out/acceptance_T1", acceptance.rows[10]["acceptance"])
    )
    results = module.results()
    assert {row["verifier"] for row in results} == {"token", "autoregressive"}
    row = results.one(verifier="token", target_temperature=0.0)
    assert 0 < row["acceptance_rate_low"] <= row["acceptance_rate"] <= row["acceptance_rate_high"] <= 1
    assert row["tokens_per_second"] > 0
    assert sorted(os.listdir("predict")) == ["predictions.origin.json", "predictions.parquet"]


def test_rows_of_a_draft_that_was_trained_since_are_not_its_own(ran):
    module, trainer, data = ran
    trainer.predict(module, data)
    before = str(module.results())
    trainer.predict(module, data)  # nothing is left to decode
    assert str(module.results()) == before
    with torch.no_grad():
        module.draft.lm_head.weight.mul_(0.5)
    with pytest.raises(UserError, match=r"holds rows of another configuration \(changed: checkpoint\)"):
        trainer.predict(module, data)
    other = L.Trainer(default_root_dir="other", accelerator="cpu", logger=False)
    other.predict(module, data)
    assert Path("other/predict/predictions.parquet").is_file()
    origins = [json.loads(Path(folder, "predict/predictions.origin.json").read_text()) for folder in (".", "other")]
    assert origins[0]["checkpoint"] != origins[1]["checkpoint"] != ""


def test_results_need_their_stage(pair):
    module = ts.DistillationModule(str(pair / "target"), draft_layers=1)
    with pytest.raises(UserError, match="expected a validation before"):
        module.acceptance()
    with pytest.raises(UserError, match="expected a predict before"):
        module.results()


def test_advice_on_workers_is_dropped_where_we_chose_them(ran, monkeypatch):
    module, trainer, data = ran
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.data_connector.suggested_max_num_workers", lambda n: 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        trainer.validate(module, data)
        trainer.predict(module, data)
    assert not [one for one in caught if "many workers" in str(one.message)]
