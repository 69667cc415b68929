import json
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from tempspec.core.sampling import log_law
from tempspec.data.sources import Source
from tempspec.errors import UserError
from tempspec.interfaces import Temperatures, TemperatureSchedule
from tempspec.models.loading import load_model, save_model
from tempspec.modules.distillation import DistillationModule
from tempspec.plugins.divergences import TAID, ForwardKL, NegativeLogAcceptance
from tempspec.plugins.schedules import Curriculum, Grid, Join, Linear, Matched, Uniform


@pytest.fixture
def module(pair):
    def make(**options):
        options = {"draft": str(pair / "draft")} | options
        return DistillationModule(str(pair / "target"), **options)

    return make


class Recorded(DistillationModule):
    """Keeps what it logs at every step."""

    def log(self, name, value, **options):
        self.__dict__.setdefault("logged", {}).setdefault(name, []).append(float(torch.as_tensor(value).detach()))


class ThirdParty(TemperatureSchedule):
    """A plugin that leaves the dtype to torch."""

    def __call__(self, context):
        return Temperatures(torch.tensor(0.7), torch.tensor(0.7))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_only_the_draft_is_trained_and_kept(pair, data, trainer):
    module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"))
    module.configure_model()
    before = weights(module.pair.target_model)
    run = trainer(max_steps=3, limit_val_batches=0)
    run.fit(module, data)
    assert all(name.startswith("draft.") for name in module.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in module.pair.target_model.state_dict().items())
    assert not module.pair.target_model.training
    assert not any(parameter.requires_grad for parameter in module.pair.target_model.parameters())
    (optimizer,) = run.optimizers
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in module.draft.parameters()}
    fresh = load_model(str(pair / "draft")).state_dict()
    assert not any(
        torch.equal(value, fresh[name]) for name, value in module.draft.state_dict().items() if "proj" in name
    )


def test_distillation_raises_the_acceptance(pair, data, trainer):
    module = DistillationModule(str(pair / "target"), draft_layers=1, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    trainer(max_epochs=1).validate(module, data)
    before = module.measurement.grids["held"].grid().acceptance[1.0, 1.0].value
    trainer(max_epochs=12, limit_val_batches=0).fit(module, data)
    trainer().validate(module, data)
    assert module.measurement.grids["held"].grid().acceptance[1.0, 1.0].value > before + 0.02


def test_the_loss_is_a_token_weighted_mean_over_the_response(pair, data, trainer):
    module = Recorded(str(pair / "target"), draft=str(pair / "draft"), temperature=2.0, divergence=ForwardKL())
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(module, data)
    target, draft = load_model(str(pair / "target")), load_model(str(pair / "draft"))
    batch = next(iter(data.train_dataloader()))
    total, count = 0.0, 0
    for ids, mask in zip(batch["input_ids"], batch["loss_mask"], strict=True):
        logp = (target(ids[None]).logits[0, :-1, :24].double() / 2).log_softmax(-1)
        logq = (draft(ids[None]).logits[0, :-1].double() / 2).log_softmax(-1)
        divergence = (logp.exp() * (logp - logq)).sum(-1)
        total += divergence[mask[1:]].sum().item()
        count += mask[1:].sum().item()
    assert module.logged["train/loss"][0] == pytest.approx(total / count, rel=1e-5)
    assert module.logged["train/temperature"] == [2.0]
    assert 0 < module.logged["train/acceptance"][0] < 1
    assert module.logged["train/grad_norm"][0] > 0


def test_padding_prompts_and_filler_rows_do_not_count(pair, data, trainer):
    module = Recorded(str(pair / "target"), draft=str(pair / "draft"))
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(module, data)
    batch = next(iter(data.train_dataloader()))
    module.trainer = run
    plain = module.training_step(batch, 0)["loss"]
    changed = {name: value.clone() for name, value in batch.items()}
    changed["input_ids"] = torch.cat([changed["input_ids"], torch.full((10, 3), 5)], 1)
    changed["input_ids"][0] = 7
    changed["weight"][0] = 0
    for name in ("attention_mask", "loss_mask"):
        changed[name] = torch.nn.functional.pad(changed[name], (0, 3))
    without = {name: value[1:] for name, value in batch.items()}
    torch.testing.assert_close(module.training_step(changed, 0)["loss"], module.training_step(without, 0)["loss"])
    assert not torch.equal(plain, module.training_step(without, 0)["loss"])


def test_label_weight_mixes_the_texts_own_tokens_in(pair, data, trainer):
    losses = []
    for share in (0.0, 0.5, 1.0):
        module = Recorded(str(pair / "target"), draft=str(pair / "draft"), label_weight=share)
        trainer(max_steps=1, limit_val_batches=0).fit(module, data)
        losses.append(module.logged["train/loss"][0])
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-5)
    batch = next(iter(data.train_dataloader()))
    draft = load_model(str(pair / "draft"))
    keep = batch["loss_mask"][:, 1:]
    logq = draft(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
    own = -logq.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)[keep].mean()
    assert losses[2] == pytest.approx(own.item(), rel=1e-5)


def test_schedules_follow_optimiser_steps_under_accumulation(pair, data, trainer):
    module = Recorded(str(pair / "target"), draft=str(pair / "draft"), temperature=Linear(1.0, 3.0))
    trainer(max_steps=4, limit_val_batches=0, accumulate_grad_batches=2).fit(module, data)
    assert module.logged["train/temperature"] == pytest.approx([1, 1, 1.5, 1.5, 2, 2, 2.5, 2.5])


def test_a_whole_run_schedule_ends_with_its_steps_or_epochs(pair, data, trainer):
    for limits in ({"max_steps": 6}, {"max_epochs": 1, "max_steps": 10000}, {"max_epochs": 3, "max_steps": 6}):
        module = Recorded(str(pair / "target"), draft=str(pair / "draft"), temperature=Linear(1.0, 2.2))
        trainer(limit_val_batches=0, **limits).fit(module, data)
        assert module.logged["train/temperature"] == pytest.approx([1, 1.2, 1.4, 1.6, 1.8, 2])


def test_random_temperatures_are_a_function_of_seed_and_step(pair, data, trainer):
    def temperatures(seed):
        module = Recorded(str(pair / "target"), draft=str(pair / "draft"), temperature=Uniform(0.3, 2.0), seed=seed)
        torch.manual_seed(seed * 7)
        trainer(max_steps=4, limit_val_batches=0).fit(module, data)
        return module.logged["train/temperature"]

    assert temperatures(1) == temperatures(1) != temperatures(2)
    assert len(set(temperatures(1))) == 4


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lower_precision_trains(pair, data, trainer, precision):
    module = Recorded(str(pair / "target"), draft=str(pair / "draft"), divergence=NegativeLogAcceptance())
    trainer(max_steps=2, limit_val_batches=0, precision=precision).fit(module, data)
    assert all(math.isfinite(loss) for loss in module.logged["train/loss"])


@pytest.mark.parametrize(
    "temperature",
    [Grid([0.7]), Matched(), Join([Uniform(0.7, 0.7)], []), ThirdParty()],
    ids=lambda one: type(one).__name__,
)
def test_under_bf16_true_the_temperature_is_the_configured(pair, data, trainer, tmp_path, temperature):
    rows = (pair / "corpus.jsonl").read_text().splitlines()
    sampled = [json.dumps(json.loads(row) | {"generation_temperature": 0.7}) for row in rows]
    (tmp_path / "sampled.jsonl").write_text("\n".join(sampled))
    data.train_sources = [Source(str(tmp_path / "sampled.jsonl"))]
    module = Recorded(str(pair / "target"), draft=str(pair / "draft"), temperature=temperature)
    trainer(max_steps=1, limit_val_batches=0, precision="bf16-true").fit(module, data)
    assert module.logged["train/temperature"] == pytest.approx([0.7], abs=1e-6)


def test_under_bf16_true_what_schedules_learn_is_exact(pair, data, trainer):
    module = Recorded(str(pair / "target"), draft=str(pair / "draft"), divergence=TAID(), temperature=Curriculum())
    trainer(max_steps=2, limit_val_batches=0, precision="bf16-true", gradient_clip_val=1.0).fit(module, data)
    assert module.draft.dtype == torch.bfloat16
    learned = [module.temperature.theta, module.divergence.share, module.divergence.momentum]
    assert {value.dtype for value in learned} == {torch.float32}
    assert module.temperature.theta.item() != Curriculum().theta.item()


def test_validation_is_the_closed_form_at_each_temperature_pair(pair, data, trainer):
    temperatures = [0.0, 0.7, 1.0]
    module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), validation_temperatures=temperatures)
    trainer().validate(module, data)
    found = module.measurement.grids["held"].grid()
    assert module.measurement.grids["again"].grid() == found
    target, draft = load_model(str(pair / "target")), load_model(str(pair / "draft"))
    sums, count = {}, 0
    for batch in data.val_dataloader()[0]:
        keep = batch["loss_mask"][:, 1:] & (batch["set_index"] == 0)[:, None]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        z_p, z_q = (model(**inputs).logits[:, :-1, :24][keep].double() for model in (target, draft))
        count += len(z_p)
        for t in temperatures:
            for d in temperatures:
                p, q = (log_law(z[:, None], torch.full((len(z),), x))[:, 0].exp() for z, x in ((z_p, t), (z_q, d)))
                sums[t, d] = sums.get((t, d), 0.0) + torch.minimum(p, q).sum().item()
    for cell, total in sums.items():
        assert found.acceptance[cell].value == pytest.approx(total / count, abs=1e-5)
    for t in temperatures:
        assert found.argmax[t].value == pytest.approx(sums[t, 0.0] / count, abs=1e-5)


def test_a_module_loads_without_a_trainer(pair):
    module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"))
    module.configure_model()
    assert module.draft is not None
    assert module.parameter_ratio < 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"draft_layers": 1}, "both model.draft and model.draft_layers"),
        ({"label_weight": 1.5}, r"label_weight must be in \[0, 1\], got 1.5"),
        ({"validation_temperatures": [-1.0]}, "validation_temperatures must be 0 or more"),
        ({"validation_temperatures": []}, "at least one"),
    ],
)
def test_bad_options_are_refused_at_once(module, options, what):
    with pytest.raises(UserError, match=what):
        module(**options)


def test_fit_without_a_draft_says_how_to_name_one(pair, data, trainer):
    with pytest.raises(UserError, match=r"model.draft to a folder or model.draft_layers"):
        trainer(max_steps=1).fit(DistillationModule(str(pair / "target")), data)


def test_rows_longer_than_a_models_context_are_refused(module, data, trainer):
    data.encoding.rows = data.encoding.rows.__class__(65)
    with pytest.raises(UserError, match=r"max_length is 65, but .*target was made for at most 64 positions"):
        trainer(max_steps=1).fit(module(), data)


def test_what_fit_exports_assists_transformers_own_generation(pair, data, trainer, tmp_path):
    module = DistillationModule(str(pair / "target"), draft_layers=1)  # transformers wants heads of one size
    trainer(max_steps=2, limit_val_batches=0).fit(module, data)
    save_model(module.export_model(), module.tokenizer, tmp_path / "draft")
    assistant = AutoModelForCausalLM.from_pretrained(tmp_path / "draft")
    target, ids = load_model(str(pair / "target")), torch.tensor([[1, 2, 3]])
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    assisted = target.generate(ids, assistant_model=assistant, **options)
    assert torch.equal(assisted, target.generate(ids, **options))


class Largest(TorchDispatchMode):
    """Notes the most rows of any tensor as wide as the vocabulary."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.ndim > 1 and found.shape[-1] in self.vocabulary:
            self.rows = max(self.rows, found.shape[-2])
        return found


def test_validation_holds_the_logits_of_a_few_tokens_at_a_time(pair, data, trainer):
    grids = {}
    for chunk in (0, 5):
        module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), chunk_tokens=chunk)
        with Largest({24, 32}) as noted:
            trainer().validate(module, data, verbose=False)
        grids[chunk] = module.measurement.grids["held"].grid().acceptance
        assert noted.rows > 24 if chunk == 0 else noted.rows <= 24
    for temperatures, estimate in grids[0].items():
        assert grids[5][temperatures].value == pytest.approx(estimate.value, abs=1e-6)
