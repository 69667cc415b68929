import math
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer

from tempspec.data.module import HELD_OUT, TextDataModule
from tempspec.data.prompts import PromptSource
from tempspec.data.sources import Source
from tempspec.errors import UserError

# torch and Lightning as they are today, and a remark that is about speed alone
LIGHTNING = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]

KINDS = {
    "input_ids": (torch.int64, 2),
    "attention_mask": (torch.int64, 2),
    "loss_mask": (torch.bool, 2),
    "generation_temperature": (torch.int32, 1),
    "key": (torch.int64, 1),
    "row": (torch.int64, 1),
    "set_index": (torch.int64, 1),
    "weight": (torch.float32, 1),
}


@pytest.fixture
def pairs(jsonl, sentences):
    """A file of prompts with responses of different lengths."""
    rows = [
        {"prompt": sentences(n, 4), "response": sentences(n, 3 + n % 7), "generation_temperature": 0.7}
        for n in range(21)
    ]
    return Source(jsonl(rows, "pairs.jsonl"))


@pytest.fixture
def texts(jsonl, sentences):
    return Source(jsonl([{"text": sentences(n)} for n in range(60)], "texts.jsonl"))


@pytest.fixture
def make(tokenizer_folder, tmp_path):
    """A data module with small rows and a cache of its own."""

    def build(**options) -> TextDataModule:
        usual = {"tokenizer": tokenizer_folder, "max_length": 24, "batch_size": 4, "cache_dir": str(tmp_path / "cache")}
        return TextDataModule(**usual | options)

    return build


def ready(module, stage):
    module.prepare_data()
    module.setup(stage)
    return module


def test_batches_have_the_promised_keys_types_and_padding(make, pairs):
    module = ready(make(train=pairs, validation_fraction=0), "fit")
    for batch in module.train_dataloader():
        assert {name: (value.dtype, value.ndim) for name, value in batch.items()} == KINDS
        real = batch["attention_mask"].bool()
        assert (real == real.cummin(1).values).all()
        assert (batch["input_ids"][~real] == module.tokenizer.pad_token_id).all()
        assert not batch["loss_mask"][~real].any()
        assert not batch["loss_mask"][:, 0].any()
        assert batch["loss_mask"].any(1).all()
        assert batch["weight"].eq(1).all()
        assert batch["generation_temperature"].view(torch.float32).sub(0.7).abs().max() < 1e-6


def test_an_epoch_holds_every_row_once_each_in_its_own_order(make, pairs):
    loader = ready(make(train=pairs, validation_fraction=0), "fit").train_dataloader()
    epochs = [torch.cat([batch["key"] for batch in loader]).tolist() for _ in range(2)]
    assert len(set(epochs[0])) == 21
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_unknown_generation_temperatures_are_nan(make, texts):
    (batch, *_) = ready(make(train=texts), "fit").train_dataloader()
    assert batch["generation_temperature"].view(torch.float32).isnan().all()


def test_named_sets_share_one_loader_in_their_order(make, pairs, texts):
    module = ready(make(train=texts, validation={"chat": pairs, "prose": texts}, eval_batch_size=5), "fit")
    assert module.validation_names == module.test_names == ["chat", "prose"]
    (loader,) = module.val_dataloader()
    index = torch.cat([batch["set_index"] for batch in loader]).tolist()
    assert index == sorted(index)
    assert index.count(0) == 21
    assert 1 in index


def test_without_validation_sets_some_rows_are_held_out(make, pairs):
    module = ready(make(train=pairs, validation_fraction=0.3), "fit")
    assert module.validation_names == [HELD_OUT]
    (loader,) = module.val_dataloader()
    held = {key for batch in loader for key in batch["key"].tolist()}
    kept = {key for batch in module.train_dataloader() for key in batch["key"].tolist()}
    assert not held & kept
    assert len(held | kept) == 21


def test_a_stage_by_itself_sees_the_held_out_rows_of_fit(make, pairs):
    options = {"train": pairs, "validation_fraction": 0.3}
    (fitted,) = ready(make(**options), "fit").val_dataloader()
    (validated,) = ready(make(**options), "validate").val_dataloader()
    tested = ready(make(**options), "test").test_dataloader()
    for loader in (validated, tested):
        for batch, expected in zip(loader, fitted, strict=True):
            assert all(torch.equal(batch[name], expected[name]) for name in KINDS if name != "generation_temperature")


@pytest.mark.parametrize(("rows", "held"), [(1, 0), (2, 1), (4, 1), (12, 1)])
def test_a_small_file_is_trained_on_and_holds_out_what_it_can(make, jsonl, sentences, caplog, rows, held):
    source = Source(jsonl([{"prompt": sentences(n), "response": sentences(n + 50, 4)} for n in range(rows)]))
    module = ready(make(train=source, validation_fraction=1e-9), "fit")
    assert len(module.train_rows) == rows - held
    assert module.validation_names == [HELD_OUT] * held
    assert len(module.val_dataloader()) == held
    assert ("nothing is held out, which takes two different rows" in caplog.text) == (not held)


def test_of_many_rows_no_more_are_held_out_than_allowed(make, pairs, texts, caplog):
    module = ready(make(train=[pairs, texts], validation_fraction=0.5, max_held_out=6, pack=False), "fit")
    (loader,) = module.val_dataloader()
    assert len(loader.dataset) == 6
    assert len(module.train_rows) == 21 + 60 - 6
    assert "at most 6 of them (data.max_held_out)" in caplog.text


def test_rows_of_a_batch_are_of_like_length_and_padding_is_said(make, jsonl, sentences, caplog):
    rows = [{"prompt": sentences(n, 2), "response": sentences(n, 2 + n * 7 % 20)} for n in range(240)]

    def padded(**options):
        module = ready(make(train=Source(jsonl(rows)), validation_fraction=0, max_length=64, **options), "fit")
        batches = list(module.train_dataloader())
        assert sorted(torch.cat([batch["row"] for batch in batches]).tolist()) == list(range(240))
        seen = torch.cat([batch["attention_mask"].flatten() for batch in batches])
        share = 1 - float(seen.float().mean())
        assert f"train: {share:.1%} of the positions are padding" in caplog.text
        return share

    assert padded() < 0.3 * padded(group_by_length=0)


def test_rows_are_validated_in_batches_of_like_length(make, pairs):
    def loaded(**options):
        module = make(validation={"a": pairs, "b": pairs}, **options)
        module.setup("validate")
        return list(module.val_dataloader()[0])

    grouped, plain = loaded(), loaded(group_by_length=0)
    assert sum(batch["input_ids"].numel() for batch in grouped) < sum(batch["input_ids"].numel() for batch in plain)
    for name in ("key", "row", "set_index"):
        one, other = (torch.cat([batch[name] for batch in batches]).tolist() for batches in (grouped, plain))
        assert sorted(one) == sorted(other)


@pytest.mark.parametrize(
    ("cores", "rows", "asked", "workers"),
    [(16, 20_000, None, 4), (1, 20_000, None, 0), (16, 200, None, 0), (1, 9, 3, 3)],
)
def test_workers_are_for_large_corpora_on_several_cores(make, monkeypatch, cores, rows, asked, workers):
    monkeypatch.setattr("tempspec.data.module._cores", lambda: cores)
    options = make(num_workers=asked)._loading(rows)
    assert options == {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": False}


@pytest.mark.parametrize("attention", ["separate", "across"])
def test_packed_documents_have_their_own_positions_unless_asked(make, texts, attention):
    module = ready(make(train=texts, validation_fraction=0, pack_attention=attention), "fit")
    starts = [[0, 5, 11]] * len(module.train_rows)
    rows = module.train_rows
    module._train = (rows.remove_columns("starts") if "starts" in rows.column_names else rows).add_column(
        "starts", starts
    )
    assert module.packed == (attention == "separate")
    (batch, *_) = module.train_dataloader()
    assert ("position_ids" in batch) == module.packed


def test_no_fraction_and_no_sets_mean_no_validation(make, pairs):
    module = ready(make(train=pairs, validation_fraction=0), "fit")
    assert (module.val_dataloader(), module.validation_names) == ([], [])


def test_several_training_corpora_are_one(make, pairs, texts):
    alone = [
        len(ready(make(train=each, validation_fraction=0), "fit").train_dataloader().dataset) for each in (pairs, texts)
    ]
    assert len(ready(make(train=[pairs, texts], validation_fraction=0), "fit").train_dataloader().dataset) == sum(alone)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_together_weigh_what_one_process_does(make, pairs, world):
    def sums(module):
        (loader,) = module.val_dataloader()
        batches = list(loader)
        total = sum(float((batch["weight"] * batch["key"].remainder(997)).sum()) for batch in batches)
        return total, [len(batch["key"]) for batch in batches]

    single = make(validation={"chat": pairs}, eval_batch_size=2)
    single.setup("validate")
    shares = []
    for rank in range(world):
        module = make(validation={"chat": pairs}, eval_batch_size=2)
        module.setup("validate")
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # the two that the sharding asks for
        shares.append(sums(module))
    assert math.isclose(sum(total for total, _ in shares), sums(single)[0])
    assert len({tuple(sizes) for _, sizes in shares}) == 1


class Pass:
    """Work as decoding hands it out: nothing that Lightning looks into."""

    def __init__(self, prompts):
        self.prompts = prompts


class Listener(LightningModule):
    """A module that turns prompts into work and remembers what it was handed."""

    def __init__(self):
        super().__init__()
        self.done = []

    def work(self, prompt_sets):
        prompts = [prompt for prompts in prompt_sets.values() for prompt in prompts]
        return [Pass(prompts[start : start + 2]) for start in range(0, len(prompts), 2)]

    def validation_step(self, batch, index):
        self.done.append(batch["key"])

    def predict_step(self, batch, index):
        self.done.extend(batch.prompts)
        return 0


@pytest.fixture
def trainer():
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class TestWithATrainer:
    pytestmark = LIGHTNING

    def test_predict_hands_out_the_work_list_once(self, make, pairs, texts, trainer):
        prompts = {
            "chat": PromptSource(pairs.path, limit=5),
            "prose": PromptSource(texts.path, prompt_tokens=4, limit=2),
        }
        listener, module = Listener(), make(prompts=prompts)
        trainer.predict(listener, module, return_predictions=False)
        assert [(prompt.set, prompt.index) for prompt in listener.done] == [
            *(("chat", index) for index in range(5)),
            *(("prose", index) for index in range(2)),
        ]

    def test_validate_encodes_once_and_hands_out_every_row(self, make, pairs, trainer, caplog):
        listener = Listener()
        trainer.validate(listener, make(validation={"chat": pairs}), verbose=False)
        assert len(torch.cat(listener.done).unique()) == 21
        assert caplog.text.count("chat: ") <= 1


def test_a_yaml_names_sources_by_their_fields(tmp_path, pairs):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TextDataModule, "data")
    parser.add_argument("--config", action="config")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: {{train: {{path: {pairs.path}}}, validation: {{a: {{path: b, text: body}}}}, "
        f"prompts: {{c: {{path: d, prompt_tokens: 7}}}}}}"
    )
    module = parser.instantiate(parser.parse_args(["--config", str(config)])).data
    assert module.train_sources == [pairs]
    assert module.validation_sources == {"a": Source("b", text="body")}
    assert module.prompt_sources == {"c": PromptSource("d", prompt_tokens=7, limit=32)}


def test_a_path_alone_is_a_source():
    module = TextDataModule(train=["a.jsonl", Source("b")], validation={"v": "c"}, prompts={"chat.path": "d.jsonl"})
    assert module.train_sources == [Source("a.jsonl"), Source("b")]
    assert module.validation_sources == {"v": Source("c")}
    assert module.prompt_sources == {"chat": PromptSource("d.jsonl")}
    assert TextDataModule(train="a.jsonl").train_sources == [Source("a.jsonl")]
    with pytest.raises(UserError, match=r"expected a path, or options out of path, .*; got {path: a, limt: 3}"):
        TextDataModule(train="{path: a, limt: 3}")


def test_a_path_alone_is_a_source_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "Don\'t"}\n')
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TextDataModule, "data")
    for given in ("a.jsonl", "[a.jsonl]", "{path: a.jsonl}", "[{path: a.jsonl}]"):
        arguments = [f"--data.train={given}", "--data.prompts={c: a.jsonl}"]
        module = parser.instantiate(parser.parse_args(arguments)).data
        assert module.train_sources == [Source("a.jsonl")]
        assert module.prompt_sources == {"c": PromptSource("a.jsonl")}
    module = parser.instantiate(parser.parse_args(["--data.train.path=a.jsonl", "--data.train.limit=3"])).data
    assert module.train_sources == [Source("a.jsonl", limit=3)]


BAD_OPTIONS = {
    "max_length": ({"max_length": 1}, "data.max_length must be 2 or more, got 1"),
    "batch_size": ({"batch_size": 0}, "data.batch_size must be 1 or more, got 0"),
    "eval_batch_size": ({"eval_batch_size": 0}, "data.eval_batch_size must be 1 or more, got 0"),
    "num_workers": ({"num_workers": -1}, "data.num_workers must be 0 or more, got -1"),
    "encoding_workers": ({"encoding_workers": 0}, "data.encoding_workers must be 1 or more, got 0"),
    "group_by_length": ({"group_by_length": -1}, "data.group_by_length must be 0 or more, got -1"),
    "pad_to_multiple": ({"pad_to_multiple": 0}, "data.pad_to_multiple must be 1 or more, got 0"),
    "max_held_out": ({"max_held_out": 0}, "data.max_held_out must be 1 or more, got 0"),
    "max_skipped": ({"max_skipped": 1.5}, "data.max_skipped must be in [0, 1], got 1.5"),
    "validation_fraction": ({"validation_fraction": 1.0}, "data.validation_fraction must be in [0, 1), got 1.0"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_an_option_out_of_range_is_one_line(make, options, message):
    with pytest.raises(UserError) as caught:
        make(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("fit", {}, "data.train is missing"),
        ("validate", {}, "data.validation is missing"),
        ("test", {}, "data.test is missing"),
        ("predict", {}, "data.prompts is empty; name at least one prompt set"),
        ("fit", {"train": True, "tokenizer": None}, "data.tokenizer is missing"),
        ("fit", {"train": True, "max_length": 3}, "no row to learn from: 20 rows read, 0 kept"),
    ],
)
def test_what_a_stage_lacks_is_one_line(make, pairs, stage, options, message):
    module = make(**options | ({"train": pairs} if "train" in options else {}))
    with pytest.raises(UserError) as caught:
        module.setup(stage)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
