import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tempspec.errors import UserError
from tempspec.models.loading import load_model
from tempspec.modules.callbacks import TrainingMonitor
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.online_text import OnlineText, OnlineWriter
from tempspec.modules.outputs import generation_temperature
from tempspec.plugins.schedules import Matched


@pytest.fixture
def batch(data):
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def writer(**options):
    return OnlineWriter(OnlineText(**options), vocabulary=24, stop_ids=frozenset([0]), context=64)


@pytest.fixture
def draft(pair):
    return load_model(str(pair / "draft"))


def test_rows_keep_their_prompt_and_carry_their_temperature(batch, draft):
    got = writer(low=0.5, high=1.5, max_new_tokens=7)(batch, draft, 0, 11)
    for index in range(len(got["input_ids"])):
        first = int(batch["loss_mask"][index].int().argmax())
        prompt = max(first, 8)
        assert torch.equal(got["input_ids"][index, :prompt], batch["input_ids"][index, :prompt])
        written = got["loss_mask"][index].nonzero().flatten().tolist()
        assert written == list(range(prompt, prompt + len(written)))
        assert 1 <= len(written) <= 7
        assert int(got["attention_mask"][index].sum()) == prompt + len(written)
    assert ((generation_temperature(got) >= 0.5) & (generation_temperature(got) <= 1.5)).all()
    assert len(set(generation_temperature(got).tolist())) == len(got["input_ids"])
    assert not draft.training


def test_at_temperature_zero_the_text_is_the_models_own_argmax(batch, draft):
    got = writer(low=0.0, max_new_tokens=5)(batch, draft, 0, 11)
    logits = draft(input_ids=got["input_ids"], attention_mask=got["attention_mask"]).logits
    expected = logits[:, :-1].argmax(-1)
    kept = got["loss_mask"][:, 1:]
    assert torch.equal(got["input_ids"][:, 1:][kept], expected[kept])


def test_kept_rows_keep_their_documents_and_written_ones_are_one(batch, draft):
    position_T = torch.arange(batch["input_ids"].shape[1]) % 6
    batch["position_ids"] = position_T.expand_as(batch["input_ids"])
    got = writer(share=0.5)(batch, draft, 0, 11)
    longest = got["input_ids"].shape[1]
    for index, known in enumerate(generation_temperature(got).isfinite()):
        length = int(got["attention_mask"][index].sum())
        expected_T = torch.arange(longest) if known else position_T
        assert torch.equal(got["position_ids"][index, :length], expected_T[:length])


def test_some_rows_keep_the_corpus_own_text(batch, draft):
    none, half, every = (writer(share=share)(batch, draft, 0, 11) for share in (0.0, 0.5, 1.0))
    known = [int(generation_temperature(got).isfinite().sum()) for got in (none, half, every)]
    assert known[0] == 0 < known[1] < known[2] == len(batch["input_ids"])
    assert torch.equal(none["input_ids"], batch["input_ids"])


def test_text_follows_from_the_key_and_fillers_are_not_written(batch, draft):
    batch["weight"][2] = 0
    one, same, other = (writer()(batch, draft, 0, key) for key in (1, 1, 2))
    assert torch.equal(one["input_ids"], same["input_ids"])
    assert one["input_ids"].shape != other["input_ids"].shape or not torch.equal(one["input_ids"], other["input_ids"])
    assert generation_temperature(one)[2].isnan()


def test_text_is_used_again_until_it_is_refreshed(batch, draft):
    write = writer(every=3)
    texts = [write(batch, draft, step, step)["input_ids"] for step in range(4)]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
    assert texts[3].shape != texts[0].shape or not torch.equal(texts[3], texts[0])


def test_each_of_a_steps_batches_has_its_own_text_again(batch, draft):
    write = writer(every=2)
    numbers = ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0))
    first, second, *again, third, fresh = (
        write(batch, draft, step, 10 * step + number, number=number)["input_ids"].tolist() for step, number in numbers
    )
    assert again == [first, second]
    assert len({str(text) for text in (first, second, third, fresh)}) == 4


def test_by_token_the_share_of_the_target_is_kept(batch, pair, draft):
    target = load_model(str(pair / "target"))
    options = {"low": 0.0, "max_new_tokens": 20}
    mixed = writer(writer="both", target_share=0.3, **options)(batch, target, 0, 5, draft)
    kept = mixed["loss_mask"][:, 1:]
    written = mixed["input_ids"][:, 1:][kept]
    own, other = (
        model(input_ids=mixed["input_ids"], attention_mask=mixed["attention_mask"]).logits[:, :-1, :24].argmax(-1)[kept]
        for model in (target, draft)
    )
    assert ((written == own) | (written == other)).all()
    differ = own != other
    assert 0.15 < float((written == own)[differ].float().mean()) < 0.45
    all_of_it = writer(writer="both", target_share=1.0, **options)(batch, target, 0, 5, draft)
    assert torch.equal(all_of_it["input_ids"], writer(**options)(batch, target, 0, 5)["input_ids"])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"writer": "target", "low": 0.5, "high": 1.5},
        {"share": 0.5, "every": 3},
        {"writer": "both", "every": 2},
        {"every": 2, "accumulate": 2},
    ],
    ids=["on-policy", "the target over a range", "mixed, every third step", "mixed by token", "accumulated"],
)
def test_a_resumed_run_ends_with_the_same_bits(pair, data, trainer, tmp_path, options):
    options = dict(options)
    accumulate = options.pop("accumulate", 1)

    def fit(resume=None, callbacks=()):
        online = OnlineText(**options, max_new_tokens=6)
        module = DistillationModule(
            str(pair / "target"), draft=str(pair / "draft"), online=online, temperature=Matched(unknown=1.0)
        )
        run = trainer(max_steps=5, limit_val_batches=0, accumulate_grad_batches=accumulate)
        run.callbacks += list(callbacks)
        run.fit(module, data, ckpt_path=resume)
        assert 0 < float(run.callback_metrics["train/generation_share"]) <= 1
        return module

    whole = fit(callbacks=[ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)])
    for step in (1, 4):
        resumed = fit(str(tmp_path / "kept" / f"step={step}.ckpt"))
        for name, value in resumed.state_dict().items():
            assert torch.equal(value, whole.state_dict()[name])


def test_the_speed_is_that_of_the_text_that_is_trained_on(pair, data, trainer):
    class Seeing(DistillationModule):
        read, speeds = [], []

        def log(self, name, value, **options):
            if name == "train/tokens_per_second":
                self.speeds.append(float(value))

        def configure_callbacks(self):
            ticks = iter(range(99))
            return [TrainingMonitor(clock=lambda: float(next(ticks)))]

    module = Seeing(str(pair / "target"), draft=str(pair / "draft"), online=OnlineText(max_new_tokens=3))
    learn = module.draft_training.learn

    def learning(*args):
        learned = learn(*args)
        module.read.append(int(learned.batch["attention_mask"].sum()))
        return learned

    module.draft_training.learn = learning
    run = trainer(max_steps=3, limit_val_batches=0, accumulate_grad_batches=2, log_every_n_steps=1)
    run.fit(module, data)
    assert module.speeds == [sum(module.read[step : step + 2]) for step in (0, 2, 4)]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"share": 1.5}, r"online.share must be in \[0, 1\], got 1.5"),
        ({"low": 2.0, "high": 1.0}, r"online.low and high must be 0 <= low <= high, got \(2.0, 1.0\)"),
        ({"target_share": 0.0}, r"online.target_share must be in \(0, 1\]"),
        ({"every": 0}, "online.every must be 1 or more"),
        ({"prompt_tokens": 0}, "online.prompt_tokens must be 1 or more"),
        ({"max_new_tokens": 0}, "online.max_new_tokens must be 1 or more"),
    ],
)
def test_bad_options_are_refused(options, what):
    with pytest.raises(UserError, match=what):
        OnlineText(**options)
