import re
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tempspec.__main__ import main
from tempspec.decoding.engine import Engine
from tempspec.decoding.sweep import Sweep
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.models.conditioning import at_temperature, condition, conditioned_rank, is_conditioned, set_temperature
from tempspec.models.loading import ModelOptions, load_model, load_tokenizer, save_model
from tempspec.models.pair import Pair
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.loss import TokenSelection
from tempspec.modules.fit.online_text import OnlineText
from tempspec.plugins import schedules
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import TokenwiseRejection
from tests.tiny import llama


@pytest.fixture
def fit(pair, data, trainer):
    def run(steps=4, *, resume=None, callbacks=(), **options):
        options = {"draft": str(pair / "draft"), "conditioning_rank": 2} | options
        module = DistillationModule(str(pair / "target"), validation_temperatures=[0.0, 0.5, 1.0], **options)
        torch.manual_seed(0)
        own = trainer(max_steps=steps, limit_val_batches=0)
        own.callbacks += list(callbacks)
        own.fit(module, data, ckpt_path=resume)
        return module

    return run


def uniform():
    return schedules.Uniform(0.3, 2.0, per="sequence")


@pytest.fixture
def conditioned(fit, tmp_path):
    """The folder of a conditioned draft of rank 2."""
    module = fit(1, temperature=uniform())
    save_model(module.export_model(), module.tokenizer, tmp_path / "conditioned")
    return str(tmp_path / "conditioned")


@pytest.mark.parametrize("end", ["closed", "error"])
def test_a_run_left_early_leaves_the_draft_at_temperature_one(end):
    target, draft = llama(0, layers=2, gain=24.0), condition(llama(1, gain=24.0), 2)
    dial = next(module.dial for module in draft.modules() if hasattr(module, "dial"))
    engine = Engine(
        target, 24, verifier=TokenwiseRejection(), drafter=CausalLM(), length=FixedLength(2), draft=draft, slots=1
    )
    running = engine.run([Request((1, 2), 0.5, max_new_tokens=3, key="a"), Request((3,), 0.5, max_new_tokens=30)])
    next(running)
    assert dial.features_BF is not None
    if end == "closed":
        running.close()
    else:
        torch.nn.init.constant_(target.lm_head.weight, torch.nan)
        with pytest.raises(UserError, match="logits are NaN"):
            list(running)
    assert dial.features_BF is None


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
def test_a_resumed_run_ends_with_the_same_bits(fit, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(temperature=uniform(), callbacks=[keep])
    assert any(name.endswith(".up") and value.any() for name, value in whole.state_dict().items())
    resumed = fit(temperature=uniform(), resume=str(tmp_path / "kept" / "step=2.ckpt"))
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
def test_every_stage_restores_the_checkpoint_of_its_own_run(fit, pair, data, trainer, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trained = fit(temperature=uniform(), callbacks=[keep])
    checkpoint = str(tmp_path / "kept" / "step=4.ckpt")
    sweep = Sweep(max_new_tokens=2, timing_prompts=0)
    for stage in ("validate", "predict"):
        module = DistillationModule(
            str(pair / "target"), draft=str(pair / "draft"), conditioning_rank=2, temperature=uniform(), sweep=sweep
        )
        getattr(trainer(), stage)(module, datamodule=data, ckpt_path=checkpoint)
        for name, value in module.draft.state_dict().items():
            assert torch.equal(value, trained.draft.state_dict()[name])


def test_a_conditioned_folder_keeps_its_rank_and_its_refusals(fit, conditioned, monkeypatch):
    again = {"draft": conditioned, "conditioning_rank": 0, "temperature": uniform()}
    assert conditioned_rank(fit(1, **again).draft) == 2
    with pytest.raises(UserError, match=rf"must be 2, that of the draft in {conditioned}, got 4: leave it out"):
        fit(1, **again | {"conditioning_rank": 4})
    for writer in ("draft", "both"):
        with pytest.raises(UserError, match=r"set online\.writer to target"):
            fit(1, **again, online=OnlineText(writer=writer))
    monkeypatch.setattr("tempspec.modules.distillation.is_sharding", lambda trainer: True)
    with pytest.raises(UserError, match="conditioned on its temperature expected every process to hold"):
        fit(1, **again)


def test_validation_is_that_of_the_folded_drafts(fit, pair, data, trainer, tmp_path, capsys):
    module = fit(temperature=uniform())
    save_model(module.export_model(), module.tokenizer, tmp_path / "draft")

    def measured(folder):
        other = DistillationModule(str(pair / "target"), draft=str(folder), validation_temperatures=[0.0, 0.5, 1.0])
        trainer().validate(other, data, verbose=False)
        return other.measurement.grids["held"].grid()

    together = measured(tmp_path / "draft")
    for temperature in (0.0, 0.5, 1.0):
        output = tmp_path / f"merged-{temperature}"
        line = [
            "export",
            "--draft",
            str(tmp_path / "draft"),
            "--temperature",
            str(temperature),
            "--output",
            str(output),
        ]
        assert main(line) == 0
        alone = measured(output)
        for target in (0.0, 0.5, 1.0):
            one, other = together.acceptance[target, temperature].value, alone.acceptance[target, temperature].value
            assert one == pytest.approx(other, abs=1e-5)
        if temperature == 0:
            assert together.argmax[0.5].value == pytest.approx(alone.argmax[0.5].value, abs=1e-5)
        same = load_model(str(output)).state_dict()
        for name, value in at_temperature(module.draft, temperature).state_dict().items():
            torch.testing.assert_close(same[name], value)
    assert "the draft at temperature 0.5" in capsys.readouterr().out


def test_a_fitted_temperature_is_that_of_the_folded_drafts(fit, pair, data, trainer, tmp_path):
    """A conditioned draft is another model at each candidate; merged there, an ordinary one has the same acceptance."""
    module = fit(steps=30, temperature=uniform())
    save_model(module.export_model(), module.tokenizer, tmp_path / "draft")
    sweep = Sweep(target_temperatures=[0.5, 1.5], draft_temperatures="fitted", top_k=7)

    def fitted(folder):
        other = DistillationModule(str(pair / "target"), draft=str(folder), sweep=sweep)
        trainer().validate(other, data, verbose=False)
        return other.measurement.fit

    whole = fitted(tmp_path / "draft")
    for row, target in zip(whole.fits(), sweep.target_temperatures, strict=True):
        assert row.acceptance.value >= row.same.value
        for temperature in {row.draft_temperature, target}:
            save_model(at_temperature(module.draft, temperature), module.tokenizer, tmp_path / "merged")
            alone = fitted(tmp_path / "merged")
            place = alone.target_temperatures.index(target) * len(alone.candidates) + alone.candidates.index(
                temperature
            )
            wanted = row.acceptance if temperature == row.draft_temperature else row.same
            assert alone.estimates()[place].value == pytest.approx(wanted.value, abs=1e-5)


def test_an_ordinary_draft_is_not_exported(pair, tmp_path, capsys):
    line = ["export", "--draft", str(pair / "draft"), "--temperature", "0.5", "--output", str(tmp_path / "out")]
    assert main(line) == 2
    assert "is not conditioned on the temperature: it serves as it is" in capsys.readouterr().err


@pytest.fixture
def saved(pair, tmp_path):
    save_model(condition(load_model(str(pair / "draft")), rank=2), load_tokenizer(str(pair / "draft")), tmp_path / "d")
    return tmp_path / "d"


def export(draft, output):
    return main(["export", "--draft", str(draft), "--temperature", "0.5", "--output", str(output)])


def test_an_export_replaces_an_earlier_one(saved, tmp_path):
    assert export(saved, tmp_path / "out") == 0
    assert export(saved, tmp_path / "out") == 0
    assert load_model(str(tmp_path / "out"))


def test_an_export_into_the_current_folder(saved, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert export(saved, ".") == 0
    assert load_model(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("d", "--output is the draft's own folder"),
        ("d/../d", "--output is the draft's own folder"),
        ("other", "or hold an earlier export, got .*other with conditioning.safetensors"),
        (".", "with d, notes.txt, other"),
    ],
)
def test_an_export_takes_nothing_away(saved, tmp_path, capsys, output, says):
    shutil.copytree(saved, tmp_path / "other")
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert export(saved, tmp_path / output) == 2
    assert re.search(says, capsys.readouterr().err)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("schedule", [schedules.Grid([0.5, 1.0]), schedules.TeacherEntropy()], ids=["grid", "tokens"])
def test_one_temperature_a_row_is_needed(fit, schedule):
    with pytest.raises(UserError, match="a conditioned draft expected one loss temperature for each row"):
        fit(1, temperature=schedule)


def test_a_draft_in_the_home_folder_is_conditioned(fit, pair, tmp_path, monkeypatch):
    module = fit(1, temperature=uniform())
    save_model(module.export_model(), module.tokenizer, tmp_path / "draft")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_conditioned(Pair(str(pair / "target"), "~/draft", None, ModelOptions()).load_draft("auto"))
    with pytest.raises(UserError, match=r"selection\.reference expected an ordinary draft, got ~/draft"):
        fit(1, conditioning_rank=0, selection=TokenSelection("~/draft"))


def test_predict_serves_every_row_at_its_own_temperature(fit, pair, data, trainer, tmp_path):
    module = fit(temperature=uniform())
    save_model(module.export_model(), module.tokenizer, tmp_path / "draft")
    temperatures = (0.0, 0.5, 1.5)

    def rows(draft, temperatures, name):
        sweep = Sweep(target_temperatures=list(temperatures), max_new_tokens=10, timing_prompts=0, slots=5)
        other = DistillationModule(str(pair / "target"), draft=str(draft), sweep=sweep)
        trainer(default_root_dir=str(tmp_path / name)).predict(other, data, return_predictions=False)
        return {row["key"]: (row["tokens"], row["accepted"]) for row in other.runner.store.rows(other.runner.order)}

    together = rows(tmp_path / "draft", temperatures, "together")
    for temperature in temperatures:
        save_model(at_temperature(module.draft, temperature), module.tokenizer, tmp_path / f"merged-{temperature}")
        alone = rows(tmp_path / f"merged-{temperature}", [temperature], f"alone-{temperature}")
        assert alone == {key: together[key] for key in alone}


def test_a_conditioned_draft_is_not_compiled_and_does_not_write(pair, fit):
    with pytest.raises(UserError, match=r"set online\.writer to target"):
        fit(1, temperature=uniform(), online=OnlineText())
    with pytest.raises(UserError, match="cannot be compiled: set compile to false"):
        Engine(
            load_model(str(pair / "target")),
            24,
            verifier=TokenwiseRejection(),
            drafter=CausalLM(),
            length=FixedLength(2),
            draft=fit(1).draft,
            compile=True,
        )


def test_a_draft_left_at_the_temperatures_of_other_rows_is_taken(pair):
    draft = condition(load_model(str(pair / "draft")), 2)
    set_temperature(draft, torch.tensor([0.5, 1.0, 2.0]))
    parts = {"verifier": TokenwiseRejection(), "drafter": CausalLM(), "length": FixedLength(2), "draft": draft}
    engine = Engine(load_model(str(pair / "target")), 24, **parts)
    assert len(list(engine.run([Request((1, 2), 1.0, max_new_tokens=3)]))) == 1
