import math

import pytest
import torch
from lightning.pytorch import Trainer

from tempspec.data.module import HELD_OUT, TextDataModule
from tempspec.data.sources import Source

# torch and Lightning as they are today, and a remark that is about speed alone
LIGHTNING = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]

KINDS = {
    "input_ids": (torch.int64, 2),
    "attention_mask": (torch.int64, 2),
    "loss_mask": (torch.bool, 2),
    "generation_temperature": (torch.float32, 1),
    "key": (torch.int64, 1),
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
        assert batch["generation_temperature"].sub(0.7).abs().max() < 1e-6


def test_an_epoch_holds_every_row_once_and_the_next_in_another_order(make, pairs):
    loader = ready(make(train=pairs, validation_fraction=0), "fit").train_dataloader()
    epochs = [torch.cat([batch["key"] for batch in loader]).tolist() for _ in range(2)]
    assert len(set(epochs[0])) == 21
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_unknown_generation_temperatures_are_nan(make, texts):
    (batch, *_) = ready(make(train=texts), "fit").train_dataloader()
    assert batch["generation_temperature"].isnan().all()


def test_named_sets_share_one_loader_in_their_order(make, pairs, texts):
    module = ready(make(train=texts, validation={"chat": pairs, "prose": texts}, eval_batch_size=5), "fit")
    assert module.validation_names == module.test_names == ["chat", "prose"]
    (loader,) = module.val_dataloader()
    index = torch.cat([batch["set_index"] for batch in loader]).tolist()
    assert index == sorted(index)
    assert index.count(0) == 21
    assert 1 in index


def test_without_validation_sets_some_rows_are_held_out_of_training(make, pairs):
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
    class Place:
        world_size = world
        state = Trainer.__new__(Trainer)

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
        module.trainer = type("Place", (), {"global_rank": rank, "world_size": world})()
        shares.append(sums(module))
    assert math.isclose(sum(total for total, _ in shares), sums(single)[0])
    assert len({tuple(sizes) for _, sizes in shares}) == 1
