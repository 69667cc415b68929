"""A head as the draft of an experiment: it is trained, measured, resumed and decodes like any other draft."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from tempspec.core.acceptance import overlap
from tempspec.core.divergences import forward_kl
from tempspec.core.vocabulary import coverage
from tempspec.decoding.sweep import Sweep
from tempspec.errors import UserError
from tempspec.models.conditioning import FILE, at_temperature, conditioned_rank, plain_state, trained_range
from tempspec.models.eagle3 import Eagle3
from tempspec.models.eagle3.faults import head_faults
from tempspec.models.head_draft import save_head
from tempspec.models.loading import load_config, load_model
from tempspec.models.tapping import head_target, tapped
from tempspec.modules.callbacks import PretrainedExport
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.training import HeadTraining
from tempspec.plugins.divergences import NegativeLogAcceptance
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.schedules import Grid, Linear, Uniform
from tests.modules.runs import data_module, quiet_trainer

STATES = [0, 1, 2]


def module_of(pair, head=None, **options):
    torch.manual_seed(0)
    kind = Eagle3(states=STATES) if head is None else head
    return DistillationModule(str(pair / "target"), head=kind, **options)


def state(module):
    return {name: value.clone() for name, value in module.draft.state_dict().items()}


def test_fit_moves_every_weight_of_the_head_and_no_other(pair, data, trainer):
    module = module_of(pair)
    before = load_model(str(pair / "target")).state_dict()
    run = trainer(max_steps=2, limit_val_batches=0)
    run.fit(module, data)
    fresh = Eagle3(states=STATES).build(head_target(module.pair.target_model)).state_dict()
    assert module.draft.training
    assert all(not torch.equal(value, fresh[name]) for name, value in state(module).items())
    assert all(torch.equal(value, before[name]) for name, value in module.pair.target_model.state_dict().items())


def test_a_head_learns(pair, data, trainer):
    module = module_of(pair, optimizer=lambda parameters: torch.optim.Adam(parameters, 0.01), length=FixedLength(2))
    run = trainer(max_steps=40, limit_val_batches=0)
    run.fit(module, data)
    first = run.callback_metrics
    assert {"train/acceptance_1", "train/acceptance_2", "train/acceptance_3"} <= set(first)
    trainer().validate(module, data, verbose=False)
    learned = module.acceptance()
    untrained = module_of(pair, length=FixedLength(2))
    trainer().validate(untrained, data, verbose=False)
    assert len(learned) == 2 * 2 * 16  # sets, drafted tokens, pairs of temperatures

    for name in ("held", "held/2"):
        place = {"set": name, "draft_temperature": 1.0, "target_temperature": 1.0}
        gained = learned.one(**place)["acceptance"] - untrained.acceptance().one(**place)["acceptance"]
        assert gained > 0.02


def test_validate_is_the_acceptance_of_each_drafted_token(pair, data, trainer):
    module = module_of(pair, length=FixedLength(2), validation_temperatures=[0.7])
    run = trainer()
    run.validate(module, data, verbose=False)
    target, head = module.pair.target_model, module.draft
    expected = {0: [], 1: []}
    for rows in data.val_dataloader()[0]:
        with torch.no_grad():
            out = tapped(target, STATES, input_ids=rows["input_ids"], use_cache=False)
            logp = (target.lm_head(out.hidden_BTH)[..., :24] / 0.7).log_softmax(-1)
            steps = head.unrolled(out.states, rows["input_ids"], target.get_input_embeddings(), 2)
            for number, hidden in enumerate(steps):
                logq = (head.logits(hidden)[..., :24] / 0.7).log_softmax(-1)
                for row in range(len(logp)):
                    for token in rows["loss_mask"][row].nonzero()[:, 0].tolist():
                        if token >= 2 + number and rows["weight"][row] and rows["set_index"][row] == 0:
                            expected[number].append(overlap(logp[row, token - 1], logq[row, token - 2 - number]))
    for number, name in enumerate(("held", "held/2")):
        found = run.callback_metrics[f"val/{name}/acceptance_T0.7"]
        torch.testing.assert_close(found, torch.stack(expected[number]).mean(), rtol=1e-5, atol=1e-5)


def test_temperatures_and_steps_come_from_one_target_pass(pair, data, trainer):
    module = module_of(pair, temperature=Grid([0.5, 1.0, 2.0]), divergence=NegativeLogAcceptance())
    passes, steps = [], module.training_step

    def counting(batch, batch_idx):
        passes.clear()
        return steps(batch, batch_idx)

    module.training_step = counting
    module.pair.target_model.model.register_forward_hook(lambda *unused: passes.append(1))
    trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    assert passes == [1], passes


# -- a draft vocabulary ------------------------------------------------------------------------------------------------


def test_a_draft_vocabulary_is_the_most_frequent_response_tokens(pair, data, trainer):
    module = module_of(pair, Eagle3(states=STATES, draft_vocabulary=9))
    trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    count = torch.zeros(24, dtype=torch.int64)
    for row in data.train_rows:
        kept = torch.tensor(row["input_ids"])[torch.tensor(row["loss_mask"])]
        count += torch.bincount(kept, minlength=24)
    ids = module.draft.ids_R
    left_out = [token for token in range(24) if token not in ids.tolist()]
    assert len(ids) == 9
    assert count[ids].min() >= count[left_out].max()
    assert module.draft.output_RH.shape == (9, 16)


def test_coverage_is_the_targets_mass_and_bounds_acceptance(pair, data, trainer):
    module = module_of(pair, Eagle3(states=STATES, draft_vocabulary=9), validation_temperatures=[1.0, 2.0])
    trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    run = trainer()
    run.validate(module, data, verbose=False)
    found = []
    for batch in data.val_dataloader()[0]:
        keep = batch["loss_mask"][:, 1:] & (batch["set_index"] == 0)[:, None] & (batch["weight"] > 0)[:, None]
        with torch.no_grad():
            logits = module.pair.target_model(batch["input_ids"]).logits[:, :-1, :24]
        found.append(coverage(logits[keep], module.draft.ids_R, [1.0, 2.0]))
    expected = torch.cat(found).mean(0)
    for temperature, value in zip((1, 2), expected, strict=True):
        found = run.callback_metrics[f"val/held/coverage_T{temperature}"]
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)
        assert run.callback_metrics[f"val/held/acceptance_T{temperature}"] <= found


def test_a_new_head_with_a_draft_vocabulary_is_fitted_first(pair, data, trainer):
    with pytest.raises(UserError, match="run `tempspec fit` first"):
        trainer().validate(module_of(pair, Eagle3(states=STATES, draft_vocabulary=9)), data)


def test_a_draft_vocabulary_of_all_tokens_is_refused(pair, data, trainer):
    with pytest.raises(UserError, match="must be below the target's 24 tokens"):
        trainer(max_steps=1).fit(module_of(pair, Eagle3(states=STATES, draft_vocabulary=24)), data)


# -- files, checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 9])
def test_fit_leaves_a_head_that_engines_read(pair, data, trainer, tmp_path, size):
    module = module_of(pair, Eagle3(states=STATES, draft_vocabulary=size))
    trainer(max_steps=2, limit_val_batches=0, callbacks=[PretrainedExport(tmp_path)]).fit(module, data)
    assert head_faults(tmp_path / "head", load_config(str(pair / "target"))) == []
    held = load_file(tmp_path / "head" / "model.safetensors")
    assert all(torch.equal(value, held[name]) for name, value in state(module).items())
    assert json.loads((tmp_path / "head" / "config.json").read_text())["draft_vocab_size"] == size
    again = module_of(pair, draft=str(tmp_path / "head"))
    trainer().validate(again, data, verbose=False)
    assert all(torch.equal(value, held[name]) for name, value in state(again).items())
    found = again.acceptance().rows
    trainer().validate(module, data, verbose=False)
    assert module.acceptance().rows == found


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
def test_a_checkpoint_is_measured_as_the_folder_is(pair, data, trainer, tmp_path):
    kind = Eagle3(states=STATES, draft_vocabulary=9)
    run = trainer(max_steps=2, limit_val_batches=0, callbacks=[PretrainedExport(tmp_path)])
    run.callbacks.append(ModelCheckpoint(tmp_path / "kept", filename="last", every_n_train_steps=2))
    run.fit(module_of(pair, kind), data)
    found = []
    for options, path in (({}, tmp_path / "kept" / "last.ckpt"), ({"draft": str(tmp_path / "head")}, None)):
        module = module_of(pair, kind, **options)
        trainer().validate(module, data, ckpt_path=path, verbose=False)
        found.append(module.acceptance().rows)
    assert found[0] == found[1]


@pytest.mark.parametrize("format", ["plain", "speculators"])
def test_training_goes_on_from_a_head_of_either_format(pair, data, trainer, tmp_path, format):
    """As it is, and as the head of tau = 1 of a conditioned one."""
    kind, target = Eagle3(states=STATES), load_model(str(pair / "target"))
    known = head_target(target)
    kind.save(kind.build(known), known, tmp_path / "head", format, torch.float32)
    held = kind.load(tmp_path / "head", known).state_dict()
    for rank in (0, 2):
        module = module_of(pair, draft=str(tmp_path / "head"), conditioning_rank=rank)
        trainer(max_steps=1, limit_val_batches=0).fit(module, data)
        moved = {name: float((value - held[name]).abs().max()) for name, value in plain_state(module.draft).items()}
        assert 0 < max(moved.values()) < 1e-3


def test_training_goes_on_from_a_head(pair, data, trainer, tmp_path):
    run = trainer(max_steps=2, limit_val_batches=0, callbacks=[PretrainedExport(tmp_path)])
    run.fit(module_of(pair, Eagle3(states=STATES, draft_vocabulary=9)), data)
    module = module_of(pair, Eagle3(states=STATES, draft_vocabulary=9), draft=str(tmp_path / "head"))
    trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    held = load_file(tmp_path / "head" / "model.safetensors")
    moved = {name: float((value - held[name]).abs().max()) for name, value in state(module).items()}
    assert 0 < max(moved.values()) < 1e-3


# -- one head for all temperatures -------------------------------------------------------------------------------------


def conditioned(pair, **options):
    options = {"conditioning_rank": 2, "temperature": Uniform(0.3, 2.0, per="sequence")} | options
    return module_of(pair, validation_temperatures=[0.5, 1.5], length=FixedLength(2), **options)


@pytest.mark.parametrize("schedule", [Uniform(0.3, 2.0, per="sequence"), Uniform(0.3, 2.0), 0.7, Linear(2.0, 0.5)])
def test_a_head_is_conditioned_under_any_schedule(pair, data, trainer, schedule):
    module = conditioned(pair, temperature=schedule)
    trainer(max_steps=2, limit_val_batches=0).fit(module, data)
    changed = {name: float(value.abs().max()) for name, value in state(module).items() if name.endswith(".up")}
    assert len(changed) == 8
    assert min(changed.values()) > 0
    low, high = trained_range(module.draft).range_2.tolist()
    assert 0.3 <= low <= high <= 2.0


def test_one_temperature_a_row_is_needed(pair, data, trainer):
    with pytest.raises(UserError, match="a conditioned draft expected one loss temperature for each row"):
        trainer(max_steps=1, limit_val_batches=0).fit(conditioned(pair, temperature=Grid([0.5, 1.0])), data)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
def test_a_conditioned_head_is_measured_as_its_folded_ones(pair, data, trainer, tmp_path):
    """From its folder and from a checkpoint, at every temperature of the draft."""
    run = trainer(max_steps=4, limit_val_batches=0, callbacks=[PretrainedExport(tmp_path)])
    run.callbacks.append(ModelCheckpoint(tmp_path / "kept", filename="last", every_n_train_steps=4))
    run.fit(conditioned(pair, optimizer=lambda parameters: torch.optim.Adam(parameters, 0.02)), data)

    def measured(path=None, **options):
        module = conditioned(pair, **options)
        trainer().validate(module, data, ckpt_path=path, verbose=False)
        return module, {
            (row["set"], row["draft_temperature"], row["target_temperature"]): row["acceptance"]
            for row in module.acceptance().rows
        }

    module, folder = measured(draft=str(tmp_path / "head"))
    assert measured(tmp_path / "kept" / "last.ckpt")[1] == folder
    assert len(folder) == 2 * 2 * 4  # sets, drafted tokens, pairs of temperatures
    target, kind = module.pair.target_model, module.pair.head
    for temperature in (0.5, 1.5):
        save_head(kind, at_temperature(module.draft, temperature), target, tmp_path / "folded", torch.float32)
        _, alone = measured(draft=str(tmp_path / "folded"), conditioning_rank=0)
        assert alone.keys() == folder.keys()
        same = {place for place in alone if alone[place] == pytest.approx(folder[place], abs=1e-5)}
        own = {place for place in alone if place[1] == temperature}
        assert own <= same
        assert len(same) < len(alone)


RESUMED = {
    "whole vocabulary": lambda pair: module_of(pair, Eagle3(states=STATES), temperature=Uniform(0.5, 2.0)),
    "few tokens": lambda pair: module_of(
        pair, Eagle3(states=STATES, draft_vocabulary=9), temperature=Uniform(0.5, 2.0)
    ),
    "conditioned": conditioned,
}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_ends_with_the_same_bits(pair, data, trainer, tmp_path, kind):
    def fit(resume=None, callbacks=()):
        module = RESUMED[kind](pair)
        run = trainer(max_steps=3, limit_val_batches=0)
        run.callbacks += list(callbacks)
        run.fit(module, data, ckpt_path=resume)
        return state(module)

    whole = fit(callbacks=[ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)])
    resumed = fit(str(tmp_path / "kept" / "step=1.ckpt"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_conditioned_folder_keeps_its_rank(pair, data, trainer, tmp_path):
    run = trainer(max_steps=1, limit_val_batches=0, callbacks=[PretrainedExport(tmp_path)])
    run.fit(conditioned(pair), data)
    folder = str(tmp_path / "head")
    again = conditioned(pair, draft=folder, conditioning_rank=0)
    trainer(max_steps=1, limit_val_batches=0).fit(again, data)
    assert conditioned_rank(again.draft) == 2
    assert trained_range(again.draft).range_2.requires_grad is False
    with pytest.raises(UserError, match=r"must be 2, that of the draft in .*, got 4: leave it out"):
        trainer(max_steps=1).fit(conditioned(pair, draft=folder, conditioning_rank=4), data)
    (tmp_path / "head" / FILE).write_text("torn")
    with pytest.raises(UserError, match=rf"cannot read .*{FILE}: .*; write the head again"):
        trainer().validate(conditioned(pair, draft=folder), data)


# -- predict -----------------------------------------------------------------------------------------------------------


def test_predict_decodes_with_the_head(pair, data, trainer, tmp_path):
    sweep = Sweep(target_temperatures=[0.0, 1.0], max_new_tokens=6, timing_prompts=1)
    plain = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), sweep=sweep)
    module = module_of(pair, sweep=sweep)
    texts = []
    for number, one in enumerate((plain, module)):
        trainer(default_root_dir=str(tmp_path / str(number))).predict(one, data, return_predictions=False)
        greedy = [row for row in one.runner.store.rows(one.runner.order) if row["target_temperature"] == 0.0]
        texts.append({(row["prompt_key"], row["verifier"]): row["text"] for row in greedy})
    assert texts[0] == texts[1]
    assert module.parameter_ratio > 0


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_head_of_some_layers_is_refused(pair):
    with pytest.raises(UserError, match=r"got both model\.head and model\.draft_layers"):
        DistillationModule(str(pair / "target"), head="Eagle3", draft_layers=1)


@pytest.mark.parametrize("options", [{"steps": 0}, {"decay": 0.0}, {"decay": 1.5}])
def test_steps_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="head_training"):
        HeadTraining(**options)


# -- the best by what is served ----------------------------------------------------------------------------------------


def test_tokens_a_round_are_of_each_drafted_token(pair, data, trainer):
    module = module_of(pair, length=FixedLength(2), serve_temperatures=[0.7, 1.3])
    run = trainer()
    run.validate(module, data, verbose=False)
    found = run.callback_metrics
    rounds = [
        1 + found[f"val/{name}/acceptance_T{heat}"] * (1 + found[f"val/{name}/2/acceptance_T{heat}"])
        for name in ("held", "again")
        for heat in ("0.7", "1.3")
    ]
    torch.testing.assert_close(found["val/block_efficiency"], torch.stack(rounds).mean(), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def stages(pair, tmp_path_factory):
    """Weights at three validations: untrained, trained and sharpened 30 times, and trained a little.

    Sharpening keeps the most likely token and so the acceptance at T = 0, and makes the divergence at T = 1 huge.
    """
    found = []
    for steps, sharp in ((0, 1.0), (30, 30.0), (6, 1.0)):
        module = module_of(pair, optimizer=lambda parameters: torch.optim.Adam(parameters, 0.02))
        run = quiet_trainer(tmp_path_factory.mktemp("run"), max_steps=max(steps, 1), limit_val_batches=0)
        begun = {}
        module.on_train_start = lambda m=module, b=begun, s=module.on_train_start: (b.update(state(m)), s())
        run.fit(module, data_module(pair, tmp_path_factory.mktemp("cache")))
        weights = state(module) if steps else begun
        weights["lm_head.weight"] = sharp * weights["lm_head.weight"]
        found.append(weights)
    return found


def held_out(module, data):
    """The divergence at T = 1 and the acceptance at T = 0 of the first drafted token, by definition."""
    target, head, losses, accepted = module.pair.target_model, module.draft, [], []
    for rows in data.val_dataloader()[0]:
        keep = rows["loss_mask"][:, 2:] & (rows["weight"] > 0)[:, None]
        with torch.no_grad():
            out = tapped(target, STATES, input_ids=rows["input_ids"], use_cache=False)
            z_p = target.lm_head(out.hidden_BTH)[:, 1:-1, :24][keep]
            embed = target.get_input_embeddings()
            z_q = head.logits(next(head.unrolled(out.states, rows["input_ids"], embed, 1)))[:, :-1, :24][keep]
        losses.append(forward_kl(z_p.log_softmax(-1), z_q.log_softmax(-1)))
        accepted.append((z_p.argmax(-1) == z_q.argmax(-1)).float())
    return float(torch.cat(losses).mean()), float(torch.cat(accepted).mean())


@pytest.mark.parametrize(("served", "best"), [(0.0, 1), (1.0, 2)])
def test_fit_leaves_the_weights_that_serve_best(pair, data, trainer, tmp_path, stages, served, best):
    """At T = 0 those with the largest divergence; the same weights and data, served at T = 1, leave others."""
    module = module_of(pair, serve_temperatures=[served], length=FixedLength(1))
    run = trainer(max_steps=3, val_check_interval=1, num_sanity_val_steps=0, callbacks=[PretrainedExport(tmp_path)])
    begun, seen, coming = module.on_validation_epoch_start, [], iter(stages)

    def begin():
        module.draft.load_state_dict(next(coming))
        seen.append(held_out(module, data))
        begun()

    module.on_validation_epoch_start = begin
    run.fit(module, data)
    losses, accepted = zip(*seen, strict=True)
    assert losses.index(max(losses)) == accepted.index(max(accepted)) == 1
    held = load_file(tmp_path / "head" / "model.safetensors")
    same = [all(torch.equal(value, held[name]) for name, value in weights.items()) for weights in stages]
    assert same == [number == best for number in range(3)]


def test_weights_that_serve_best_need_a_validation(pair, data, trainer):
    with pytest.raises(UserError, match="chooses weights by validation, and there is none"):
        trainer(max_steps=1, limit_val_batches=0).fit(module_of(pair, serve_temperatures=[1.0]), data)
    with pytest.raises(UserError, match="serve_temperatures must be 0 or more"):
        module_of(pair, serve_temperatures=[-1.0])
