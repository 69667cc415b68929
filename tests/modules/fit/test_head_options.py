"""Text that is written while a head learns, tokens that are selected for it, and what a head is refused."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tempspec.core.divergences import forward_kl
from tempspec.errors import UserError
from tempspec.models.eagle3 import Eagle3
from tempspec.models.loading import ModelOptions, load_model
from tempspec.models.pair import Pair
from tempspec.models.tapping import head_target, tapped
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.features import CachedFeatures
from tempspec.modules.fit.loss import TokenSelection
from tempspec.modules.fit.memory import sizes
from tempspec.modules.fit.online_text import OnlineText
from tempspec.modules.fit.teacher_cache import CachedTeacher
from tempspec.modules.fit.training import HeadTraining
from tempspec.modules.outputs import generation_temperature
from tempspec.plugins.schedules import Matched, Uniform

STATES = [0, 1, 2]


def module_of(pair, head=None, **options):
    torch.manual_seed(0)
    return DistillationModule(str(pair / "target"), head=head or Eagle3(states=STATES), **options)


@pytest.fixture(scope="module")
def folders(pair, tmp_path_factory):
    """Heads on disk: two that differ in their weights alone, one of other states, one of some tokens."""
    known, made = head_target(load_model(str(pair / "target"))), {}
    some = torch.tensor([1, 4, 5, 9])
    for seed, (name, kind, ids) in enumerate(
        (
            ("own", Eagle3(states=STATES), None),
            ("other", Eagle3(states=STATES), None),
            ("states", Eagle3(states=[0, 1]), None),
            ("tokens", Eagle3(states=STATES, draft_vocabulary=4), some),
        )
    ):
        torch.manual_seed(seed)
        model = kind.build(known, ids)
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.7)
        folder = tmp_path_factory.mktemp("heads") / name
        kind.save(model, known, folder, "plain", torch.float32)
        made[name] = str(folder)
    return made


# -- text that is written while training -------------------------------------------------------------------------------


def learned(module, data, trainer, **options):
    """What a fit read and lost at each of its steps, by its own batches."""
    seen, learn = [], module.draft_training.learn

    def learning(*args):
        found = learn(*args)
        seen.append((found.batch, found.logged["loss"]))
        return found

    module.draft_training.learn = learning
    trainer(limit_val_batches=0, **options).fit(module, data)
    return seen


def test_a_head_learns_from_what_the_target_writes(pair, data, trainer):
    """At T = 0 the text is the target's argmax, and the loss is that of a corpus that says the same."""
    online = OnlineText(writer="target", low=0.0, max_new_tokens=6)
    module = module_of(pair, online=online)
    ((batch, loss),) = learned(module, data, trainer, max_steps=1)
    kept = batch["loss_mask"][:, 1:]
    expected = load_model(str(pair / "target"))(batch["input_ids"]).logits[:, :-1, :24].argmax(-1)
    assert torch.equal(batch["input_ids"][:, 1:][kept], expected[kept])
    assert (generation_temperature(batch) == 0.0).all()
    ((_, other),) = learned(module_of(pair), data, trainer, max_steps=1)
    assert not torch.isclose(loss, other)
    again = module_of(pair)
    again.on_train_batch_start = lambda rows, index: rows.update(batch)
    ((_, same),) = learned(again, data, trainer, max_steps=1)
    torch.testing.assert_close(same, loss)


def test_head_and_target_write_token_by_token(pair, data, trainer, folders):
    """At T = 0 a token is the argmax of either; of the target alone where it has every token."""
    online = OnlineText(writer="both", low=0.0, target_share=0.4, max_new_tokens=10)
    module = module_of(pair, draft=folders["own"], online=online, optimizer=lambda found: torch.optim.SGD(found, 0.0))
    ((batch, _),) = learned(module, data, trainer, max_steps=1)
    target, head, ids = module.pair.target_model, module.draft, batch["input_ids"]
    kept = batch["loss_mask"][:, 1:]
    written = ids[:, 1:][kept]
    with torch.no_grad():
        out = tapped(target, STATES, input_ids=ids, use_cache=False)
        own = target.lm_head(out.hidden_BTH)[:, :-1, :24].argmax(-1)
        drafted = torch.zeros(16, *kept.shape, dtype=torch.int64)
        for number, hidden in enumerate(head.unrolled(out.states, ids, target.get_input_embeddings(), 16)):
            known = drafted.shape[2] - 1 - number
            drafted[number, :, 1 + number :] = head.logits(hidden)[:, : max(known, 0), :24].argmax(-1)
    assert ((written == own[kept]) | (drafted[:, kept] == written).any(0)).all()
    assert 0.3 < (written == own[kept]).float().mean() < 0.95
    online = OnlineText(writer="both", low=0.0, target_share=1.0, max_new_tokens=10)
    module = module_of(pair, draft=folders["own"], online=online)
    ((batch, _),) = learned(module, data, trainer, max_steps=1)
    only = OnlineText(writer="target", low=0.0, max_new_tokens=10)
    ((other, _),) = learned(module_of(pair, draft=folders["own"], online=only), data, trainer, max_steps=1)
    assert torch.equal(batch["input_ids"], other["input_ids"])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
@pytest.mark.parametrize("options", [{"writer": "target", "high": 1.5}, {"writer": "both", "every": 2}], ids=str)
def test_a_resumed_head_writes_what_it_would_have(pair, data, trainer, tmp_path, options):
    def fit(resume=None, callbacks=()):
        online = OnlineText(**options, max_new_tokens=6)
        module = module_of(pair, online=online, temperature=Matched(unknown=1.0))
        run = trainer(max_steps=3, limit_val_batches=0)
        run.callbacks += list(callbacks)
        run.fit(module, data, ckpt_path=resume)
        assert 0 < float(run.callback_metrics["train/generation_share"]) <= 1
        return module.draft.state_dict()

    whole = fit(callbacks=[ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)])
    resumed = fit(str(tmp_path / "kept" / "step=1.ckpt"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


# -- tokens that are selected ------------------------------------------------------------------------------------------


def step_losses(head, target, batch, steps):
    """The forward KL at T = 1 of every token of each step, by definition."""
    with torch.no_grad():
        out = tapped(target, STATES, input_ids=batch["input_ids"], use_cache=False)
        logp = target.lm_head(out.hidden_BTH)[..., :24].log_softmax(-1)
        found = head.unrolled(out.states, batch["input_ids"], target.get_input_embeddings(), steps)
        hidden = [one.clone() for one in found]
    losses = []
    for number, own in enumerate(hidden):
        keep = batch["loss_mask"][:, 2 + number :] & (batch["weight"] > 0)[:, None]
        logq = head.logits(own)[..., :24].log_softmax(-1)[:, : keep.shape[1]]
        losses.append(forward_kl(logp[:, 1 + number : -1], logq)[keep].detach())
    return losses


def test_a_head_learns_where_it_loses_most_at_each_step(pair, data, trainer, folders):
    selection = TokenSelection(folders["other"], fraction=0.25)
    options = {"draft": folders["own"], "head_training": HeadTraining(2, 0.5)}
    module = module_of(pair, selection=selection, **options)
    ((batch, loss),) = learned(module, data, trainer, max_steps=1)
    fresh = module_of(pair, **options)
    fresh.configure_model()
    target = fresh.pair.target_model
    own, other = (step_losses(head, target, batch, 2) for head in (fresh.draft, module.draft_training.reference()))
    total, weight = 0.0, 0.0
    for number, (mine, theirs) in enumerate(zip(own, other, strict=True)):
        chosen = (mine - theirs).topk(-(-len(mine) // 4)).indices
        total += 0.5**number * float(mine[chosen].sum())
        weight += 0.5**number * len(chosen)
        assert not torch.equal(chosen.sort().values, mine.topk(len(chosen)).indices.sort().values)
    assert float(loss) == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("states", r"must read the states \[0, 1, 2\] as the head does, got \[0, 1\]"),
        ("tokens", "must draft the head's own tokens, got a head with another draft vocabulary"),
        ("none", r"selection\.reference must be the folder of a trained head"),
    ],
)
def test_a_reference_unlike_the_head_is_refused(pair, data, trainer, folders, folder, says):
    selection = TokenSelection(folders.get(folder, "no/such/folder"))
    with pytest.raises(UserError, match=says):
        trainer(max_steps=1).fit(module_of(pair, selection=selection), data)


def test_a_reference_heads_memory_is_that_of_its_steps(pair, folders):
    made = Pair(str(pair / "target"), None, None, ModelOptions(), head=Eagle3(states=STATES))
    found = sizes(made, batch_size=2, length=9, head_steps=3, reference=folders["own"])
    model = made.reference_model(folders["own"])
    assert found.reference == 4 * (sum(one.numel() for one in model.parameters()) + 3 * 2 * 8 * 16)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"teacher": CachedTeacher("x")}, "model.teacher is for a language model, .* take model.features"),
        ({"online": OnlineText()}, "online.writer must be target or both for Eagle3, .* got draft"),
        (
            {"online": OnlineText("target"), "features": CachedFeatures("x")},
            "model.features has no states of text that model.online writes: leave one of them out",
        ),
    ],
)
def test_what_a_head_cannot_be_trained_with_is_refused(pair, options, says):
    with pytest.raises(UserError, match=says):
        module_of(pair, **options)


def test_a_conditioned_head_writes_no_text_of_its_own(pair, data, trainer):
    options = {"conditioning_rank": 2, "temperature": Uniform(0.5, 2.0, per="sequence")}
    with pytest.raises(UserError, match=r"cannot write its own text yet: set online\.writer to target"):
        trainer(max_steps=1).fit(module_of(pair, online=OnlineText("both"), **options), data)
    found = learned(
        module_of(pair, online=OnlineText("target", max_new_tokens=4), **options), data, trainer, max_steps=1
    )
    assert found[0][1].isfinite()
