import copy
import csv
import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tempspec.data.module import TextDataModule
from tempspec.data.sources import Source
from tempspec.errors import UserError
from tempspec.models.loading import load_model
from tempspec.modules.callbacks.metrics_file import MetricsFile
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.loss import TokenSelection
from tempspec.modules.language_model import LanguageModelModule
from tempspec.plugins import divergences, schedules


class Recorded(DistillationModule):
    """Keeps what it logs at every step."""

    def log(self, name, value, **options):
        self.__dict__.setdefault("logged", {}).setdefault(name, []).append(float(torch.as_tensor(value).detach()))


SCHEDULES = {
    "Linear": lambda: schedules.Linear(2.0, 0.5),
    "Uniform per batch": lambda: schedules.Uniform(0.3, 2.0),
    "Uniform per sequence": lambda: schedules.Uniform(0.3, 2.0, per="sequence"),
    "Uniform per token": lambda: schedules.Uniform(0.3, 2.0, per="token"),
    "Grid": lambda: schedules.Grid([0.5, 1.0, 2.0], weights=[1, 2, 1]),
    "Matched": lambda: schedules.Matched(unknown=0.8),
    "Join": lambda: schedules.Join([schedules.Constant(2.0), schedules.Uniform(0.5, 1.0)], [2]),
    "TeacherEntropy": lambda: schedules.TeacherEntropy(),
    "TokenDifficulty": lambda: schedules.TokenDifficulty(),
    "LogitPeaks": lambda: schedules.LogitPeaks(),
    "Curriculum": lambda: schedules.Curriculum(),
    "Join that learns": lambda: schedules.Join([schedules.Constant(2.0), schedules.Curriculum(steps=1)], [1]),
}
DIVERGENCES = {
    "TAID": lambda: divergences.TAID(rate=0.1),
    "WeightedSum": lambda: divergences.WeightedSum({"kl": divergences.ForwardKL(), "way": divergences.TAID()}),
}


@pytest.fixture
def fit(pair, data, trainer):
    """Fits the pair's draft for some steps; returns the module and its trainer."""

    def run(steps=4, *, resume=None, callbacks=(), precision="32-true", accumulate=1, adam=True, rows=data, **options):
        kind = torch.optim.AdamW if adam else torch.optim.SGD
        module = Recorded(
            str(pair / "target"),
            draft=str(pair / "draft"),
            optimizer=lambda parameters: kind(parameters, lr=1e-2),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
            **options,
        )
        with_checkpoints = trainer(
            max_steps=steps, limit_val_batches=0, precision=precision, accumulate_grad_batches=accumulate
        )
        with_checkpoints.callbacks += list(callbacks)
        with_checkpoints.fit(module, rows, ckpt_path=resume)
        return module

    return run


def same(one, other, **tolerance):
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], **tolerance, equal_nan=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_weight": 0.3, "average": "sequence", "divergence": divergences.JensenShannon(scale="gradient")},
        {"temperature": schedules.Uniform(0.3, 2.0, per="token"), "divergence": divergences.AdaptiveKL()},
        {"temperature": schedules.Grid([0.5, 2.0]), "divergence": divergences.LKHybrid(scale="gradient")},
        {"temperature": schedules.TokenDifficulty()},
        {"temperature": schedules.Curriculum(start=1.5, steps=2)},
    ],
    ids=["default", "labels", "per token", "grid", "difficulty", "learned"],
)
def test_chunks_train_the_draft_that_whole_logits_train(fit, options):
    # Adam's first steps would magnify the rounding of small gradients.
    whole, chunks = (
        fit(3, chunk_tokens=chunk, **copy.deepcopy(options), accumulate=2, adam=False) for chunk in (0, 17)
    )
    assert whole.source.whole
    assert not chunks.source.whole
    same(chunks, whole, rtol=1e-5, atol=1e-6)
    assert chunks.logged["train/loss"] == pytest.approx(whole.logged["train/loss"], rel=1e-4)
    assert chunks.logged["train/acceptance"] == pytest.approx(whole.logged["train/acceptance"], rel=1e-4)


def test_chunks_are_the_default_and_train_under_autocast(fit):
    whole, chunks = (fit(2, chunk_tokens=chunk, precision="bf16-mixed") for chunk in (0, None))
    assert not chunks.source.whole
    assert chunks.logged["train/loss"] == pytest.approx(whole.logged["train/loss"], rel=2e-2)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
@pytest.mark.parametrize(
    "options",
    [{"temperature": make} for make in SCHEDULES.values()] + [{"divergence": make} for make in DIVERGENCES.values()],
    ids=[*SCHEDULES, *DIVERGENCES],
)
def test_a_resumed_run_ends_with_the_same_bits(fit, tmp_path, options):
    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(4, callbacks=[keep], **{name: make() for name, make in options.items()})
    for step in (1, 3):
        checkpoint = str(tmp_path / "kept" / f"step={step}.ckpt")
        resumed = fit(4, resume=checkpoint, **{name: make() for name, make in options.items()})
        assert resumed.logged["train/loss"] == whole.logged["train/loss"][step:]
        same(resumed, whole, rtol=0, atol=0)


def test_a_learned_temperature_is_trained_and_saved(fit):
    module = fit(4, temperature=schedules.Curriculum(start=2.0, steps=2))
    assert "temperature.theta" in module.state_dict()
    assert len(set(module.logged["train/temperature"])) > 1


def test_weight_decay_is_the_drafts_alone(fit):
    module = fit(1, temperature=schedules.Curriculum())
    *draft, learned = module.trainer.optimizers[0].param_groups
    assert [sum(len(group["params"]) for group in draft), learned["params"]] == [
        len(list(module.draft.parameters())),
        [module.temperature.theta],
    ]
    assert all(group["weight_decay"] > 0 for group in draft)
    assert learned["weight_decay"] == 0


def test_what_a_joined_schedule_learns_is_trained_and_saved(fit):
    module = fit(5, temperature=schedules.Join([schedules.Constant(3.0), schedules.Curriculum(steps=1)], [1]))
    assert "temperature.schedule_1.theta" in module.state_dict()
    first, *learned = module.logged["train/temperature"]
    assert first == 3.0
    assert len(set(learned)) > 2


def test_both_means_are_reported_and_either_can_be_the_loss(fit, data, pair):
    tokens, sequences = (fit(1, average=average) for average in ("token", "sequence"))
    for name in ("train/token_loss", "train/sequence_loss"):
        assert tokens.logged[name] == pytest.approx(sequences.logged[name], rel=1e-5)
    assert tokens.logged["train/loss"] == pytest.approx(tokens.logged["train/token_loss"], rel=1e-5)
    assert sequences.logged["train/loss"] == pytest.approx(sequences.logged["train/sequence_loss"], rel=1e-5)


@pytest.fixture
def ragged(pair, tmp_path):
    """A data module over rows of one to twelve response tokens."""
    lines = (pair / "corpus.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows):
        row["response"] = " ".join(row["response"].split()[: 1 + number * 7 % 12])
    path = tmp_path / "ragged.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return TextDataModule(
        tokenizer=str(pair / "target"),
        train=Source(str(path)),
        max_length=24,
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
    )


@pytest.mark.parametrize("kind", ["distillation", "language model"])
def test_an_accumulated_step_logs_the_mean_over_all_its_tokens(pair, ragged, trainer, tmp_path, kind):
    def logged(batch_size, accumulate):
        ragged.batch_size = batch_size
        folder = tmp_path / f"{kind} {accumulate}"
        module = (
            LanguageModelModule(pretrained=str(pair / "draft"))
            if kind == "language model"
            else DistillationModule(str(pair / "target"), draft=str(pair / "draft"), temperature=1.5)
        )
        run = trainer(max_steps=1, limit_val_batches=0, accumulate_grad_batches=accumulate, log_every_n_steps=1)
        run.loggers = [MetricsFile(folder)]
        run.fit(module, ragged)
        (row,) = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
        names = ("loss", "token_loss", "sequence_loss", "acceptance", "temperature")
        return {name: float(row[f"train/{name}"]) for name in names if f"train/{name}" in row}

    assert logged(4, 3) == pytest.approx(logged(12, 1), rel=1e-5)


def test_selection_learns_what_loses_most_to_the_reference(fit, pair, data):
    module = fit(1, selection=TokenSelection(str(pair / "target"), fraction=0.25))
    batch = next(iter(data.train_dataloader()))
    keep = batch["loss_mask"][:, 1:]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logp, logq = (
        load_model(str(pair / name))(**inputs).logits[:, :-1, :24][keep].log_softmax(-1) for name in ("target", "draft")
    )
    # The reference is the target itself: its loss is 0, and the draft's own largest losses are chosen.
    own = (logp.exp() * (logp - logq)).sum(-1)
    count = -(-len(own) // 4)
    assert module.logged["train/loss"][0] == pytest.approx(own.topk(count).values.mean().item(), rel=1e-5)


@pytest.mark.parametrize("selection", [True, False])
def test_sequences_count_alike_by_the_tokens_that_are_learned(fit, pair, ragged, selection):
    options = {"selection": TokenSelection(str(pair / "target"), 0.4)} if selection else {}
    module = fit(1, rows=ragged, average="sequence", **options)
    assert module.logged["train/loss"] == pytest.approx(module.logged["train/sequence_loss"], rel=1e-5)
    assert module.logged["train/loss"] != pytest.approx(module.logged["train/token_loss"], rel=1e-3)


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(UserError, match=r"selection\.fraction must be in"):
        TokenSelection("folder", fraction)


def test_negative_chunks_are_refused(pair):
    with pytest.raises(UserError, match="chunk_tokens must be 0"):
        DistillationModule(str(pair / "target"), chunk_tokens=-1)


def test_rows_without_any_token_of_the_loss_are_no_trouble(fit, data, trainer):
    module = fit(1)
    batch = next(iter(data.train_dataloader()))
    batch["loss_mask"][:] = False
    module.trainer = trainer(max_steps=1)
    loss = module.training_step(batch, 0)["loss"]
    assert loss == 0
    loss.backward()
