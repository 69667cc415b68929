"""The acceptance of what anybody trains: a LightningModule of their own, and transformers' Trainer."""

import json
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import tempspec as ts
from tempspec.errors import UserError
from tempspec.models.loading import load_model, load_tokenizer
from tempspec.modules.callbacks.probe import AcceptanceProbe, draft_of


class Own(pl.LightningModule):
    """Somebody's training, which knows nothing of this package."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        return self.model(**batch, labels=batch["input_ids"]).loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.model(**batch, labels=batch["input_ids"]).loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)


@pytest.fixture
def texts(pair):
    rows = [json.loads(line) for line in (pair / "prompts.jsonl").read_text().splitlines()]
    return [f"{row['prompt']} {row['response']}" for row in rows]


@pytest.fixture
def batches(pair, texts):
    tokenizer = load_tokenizer(str(pair / "target"))
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    return DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], batch_size=2)


@pytest.fixture
def draft(pair):
    return load_model(str(pair / "draft"))


@pytest.fixture
def lightning(tmp_path):
    def make(*callbacks, **options):
        return pl.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    return make


def by_hand(target, draft, batches, temperature):
    overlaps = []
    for batch in batches:
        with torch.no_grad():
            logits = (model(**batch).logits[:, :-1, :24].double() / temperature for model in (target, draft))
            p, q = (each.softmax(-1) for each in logits)
        overlaps.append(torch.minimum(p, q).sum(-1).flatten())
    return torch.cat(overlaps).mean().item()


def test_it_is_the_overlap_of_both_laws_over_the_text(pair, draft, batches):
    target = load_model(str(pair / "target"))
    for given in (target, str(pair / "target")):
        tokenizer = str(pair / "target") if given is target else None
        probe = AcceptanceProbe(given, batches, [0.5, 1], tokenizer=tokenizer)
        found = probe.measure(draft)
        for temperature in (0.5, 1.0):
            expected = by_hand(target, draft, batches, temperature)
            assert found[f"acceptance/T{temperature:g}"] == pytest.approx(expected, abs=1e-5)
    assert len(probe.table()) == 4
    assert probe.table()[0]["prompts"] == 6


def test_texts_batches_and_a_data_module_are_read_alike(pair, draft, texts, data):
    target = str(pair / "target")
    (plain,) = AcceptanceProbe(target, texts, [1.0], max_length=17).measure(draft).values()
    again = AcceptanceProbe(target, texts, [1.0], max_length=17, batch_size=4)
    assert again.measure(draft)["acceptance/T1"] == pytest.approx(plain, abs=1e-6)
    response = AcceptanceProbe(target, data, [1.0]).measure(draft)["acceptance/T1"]
    (loader,) = data.val_dataloader()
    rows = [
        {"input_ids": batch["input_ids"], "labels": batch["input_ids"].masked_fill(~batch["loss_mask"], -100)}
        for batch in loader
    ]
    tokenizer = load_tokenizer(target)
    labelled = AcceptanceProbe(target, rows, [1.0], tokenizer=tokenizer).measure(draft)["acceptance/T1"]
    assert response == pytest.approx(labelled, abs=1e-6)


def test_any_lightning_module_logs_its_acceptance(pair, draft, batches, texts, lightning):
    callback = ts.AcceptanceCallback(str(pair / "target"), texts, [0.0, 1.0], draft="model")
    trainer = lightning(callback, max_epochs=2)
    module = Own(draft.train())
    trainer.fit(module, batches, batches)
    assert {"acceptance/T0", "acceptance/T1", "val_loss"} <= set(trainer.callback_metrics)
    assert all(part.training for part in draft.modules())
    assert all(not parameter.is_inference() for parameter in draft.parameters())
    last = callback.table().one(target_temperature=1.0, draft_temperature=1.0)["acceptance"]
    assert trainer.callback_metrics["acceptance/T1"].item() == pytest.approx(last)
    assert not [name for name in module.state_dict() if "target" in name]


def test_it_may_be_measured_every_so_many_steps(pair, draft, batches, texts, lightning):
    steps = []

    class Counted(ts.AcceptanceCallback):
        def _log(self, pl_module):
            super()._log(pl_module)
            steps.append(pl_module.global_step)

    callback = Counted(str(pair / "target"), texts, [1.0], every_n_steps=2, limit=1)
    lightning(callback, max_epochs=2, accumulate_grad_batches=1).fit(Own(draft.train()), batches, batches)
    assert steps == [2, 4, 6]


def test_a_run_that_validates_never_is_measured_at_its_end(pair, draft, batches, texts, lightning):
    callback = ts.AcceptanceCallback(str(pair / "target"), texts, [1.0])
    with pytest.raises(UserError, match="expected a measurement before, got none"):
        callback.table()
    lightning(callback, max_steps=1).fit(Own(draft.train()), batches, batches)  # an epoch has three steps
    assert callback.table()[0]["acceptance"] == pytest.approx(
        AcceptanceProbe(str(pair / "target"), texts, [1.0]).measure(draft)["acceptance/T1"]
    )


@pytest.mark.parametrize("every", [None, 2])
def test_transformers_trainer_gets_the_same(pair, draft, texts, tmp_path, every):
    tokenizer = load_tokenizer(str(pair / "target"))
    rows = [{"input_ids": (ids := tokenizer(text)["input_ids"]), "labels": ids} for text in texts]
    callback = ts.AcceptanceTrainerCallback(str(pair / "target"), texts, [0.0, 1.0], every_n_steps=every)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        eval_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and accelerate, on the machine's lack of devices
        trainer = Trainer(draft, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[callback])
        trainer.train()
    name = "acceptance/T1" if every else "eval_acceptance/T1"
    logged = [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]
    assert [step for step, _ in logged] == ([2, 3] if every else [3])
    if every is None:
        assert logged[0][1] == AcceptanceProbe(str(pair / "target"), texts, [1.0]).measure(draft)["acceptance/T1"]


def test_what_cannot_be_measured_has_one_line(pair, draft, texts):
    target = str(pair / "target")
    with pytest.raises(UserError, match="temperatures must be 0 or more"):
        ts.AcceptanceCallback(target, texts, [])
    with pytest.raises(UserError, match="every_n_steps must be 1 or more, got 0"):
        ts.AcceptanceTrainerCallback(target, texts, every_n_steps=0)
    with pytest.raises(UserError, match=r"expected a language model in student of Own, got NoneType"):
        draft_of(Own(draft), "student")
    with pytest.raises(UserError, match="expected batches with input_ids, got one with ids"):
        AcceptanceProbe(target, [{"ids": torch.zeros(1, 2)}]).measure(draft)
    with pytest.raises(UserError, match="expected held-out text with tokens to predict"):
        AcceptanceProbe(target, [{"input_ids": torch.ones(1, 1, dtype=torch.int64)}]).measure(draft)


def test_the_model_is_found_where_it_usually_is(draft):
    assert draft_of(Own(draft), None) is draft
    assert draft_of(Own(draft), lambda module: module.model) is draft
    assert draft_of(draft, None) is draft
    nested = torch.nn.Module()
    nested.inner = Own(draft)
    assert draft_of(nested, "inner.model") is draft
