"""A draft may lack ids of the tokenizer, in training as in decoding; of the target each id of the text is asked for."""

import json
import math

import pytest
import torch

from tempspec.core.sampling import log_law
from tempspec.data.module import TextDataModule
from tempspec.data.sources import Source
from tempspec.errors import UserError
from tempspec.models.loading import load_model, save_model
from tempspec.models.ragged import RaggedModel
from tempspec.modules.distillation import DistillationModule
from tempspec.plugins.divergences import ForwardKL, LabelCrossEntropy
from tests.tiny import WORDS, llama, words

SHORT = 20


@pytest.fixture
def short(tmp_path):
    """The folder of a draft with 20 embeddings of the 24 ids."""
    save_model(llama(1, SHORT, gain=24.0, eos_token_id=0), words(), tmp_path / "short")
    return str(tmp_path / "short")


class Recorded(DistillationModule):
    """Keeps the loss of every step."""

    losses: tuple = ()

    def log(self, name, value, **options):
        if name == "train/loss":
            self.losses = (*self.losses, float(value))


@pytest.mark.parametrize("divergence", [ForwardKL(), LabelCrossEntropy()], ids=["forward_kl", "labels"])
@pytest.mark.parametrize("chunk", [None, 0])
def test_a_draft_that_lacks_ids_is_trained(pair, data, trainer, short, chunk, divergence):
    module = Recorded(str(pair / "target"), draft=short, chunk_tokens=chunk, divergence=divergence, label_weight=0.3)
    trainer(max_steps=2, limit_val_batches=0).fit(module, data)
    assert len(module.losses) == 2
    assert all(math.isfinite(loss) for loss in module.losses)


@pytest.mark.parametrize("chunk", [None, 0])
def test_validation_gives_ids_that_the_draft_lacks_no_mass(pair, data, trainer, short, chunk):
    module = DistillationModule(str(pair / "target"), draft=short, chunk_tokens=chunk, validation_temperatures=[0.7])
    trainer().validate(module, data)
    target, draft = load_model(str(pair / "target")), load_model(short)
    total = count = 0
    temperature_1 = torch.tensor([0.7])
    for batch in data.val_dataloader()[0]:
        for ids, mask, which in zip(batch["input_ids"], batch["loss_mask"], batch["set_index"], strict=True):
            if which == 0:
                p = log_law(target(ids[None]).logits[:, :-1, :24], temperature_1)[0].exp()
                q = log_law(draft(ids[None].clamp(max=SHORT - 1)).logits[:, :-1], temperature_1)[0].exp()
                total += torch.minimum(p[:, :SHORT], q)[mask[1:]].sum().item()
                count += mask[1:].sum().item()
    found = module.measurement.grids["held"].grid().acceptance[0.7, 0.7].value
    assert found == pytest.approx(total / count, abs=1e-5)


def test_training_reads_ids_the_draft_lacks_as_decoding_does(pair, data, trainer, short):
    module = DistillationModule(str(pair / "target"), draft=short)
    trainer().validate(module, data)
    ids = torch.tensor([[3, 23, 20, 5]])
    ragged = RaggedModel(load_model(short), 1, 8)
    with torch.no_grad():
        expected = ragged.forward(ids, torch.tensor([0]), longest=0)
        torch.testing.assert_close(module.draft(input_ids=ids).logits, expected)


@pytest.fixture
def grown(tmp_path):
    """A target without an embedding for its tokenizer's last two ids; one of them pads."""
    tokenizer = words()
    tokenizer.add_tokens(["<new>"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    save_model(llama(0, layers=2, gain=24.0, eos_token_id=0), tokenizer, tmp_path / "grown")

    def make(texts):
        (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        return TextDataModule(
            tokenizer=str(tmp_path / "grown"),
            train=Source(str(tmp_path / "texts.jsonl")),
            validation={"again": Source(str(tmp_path / "texts.jsonl"))},
            max_length=24,
            batch_size=4,
            pack=False,
            cache_dir=str(tmp_path / "cache"),
        )

    return str(tmp_path / "grown"), make


TEXTS = [" ".join(WORDS[1 + (7 * row + place) % 23] for place in range(5 + row)) for row in range(8)]


def test_padding_need_not_have_an_embedding(grown, trainer):
    target, make = grown
    module = Recorded(target, draft_layers=1)
    trainer(max_steps=2).fit(module, make(TEXTS))
    assert all(math.isfinite(loss) for loss in module.losses)


@pytest.mark.parametrize(("stage", "name"), [("fit", "train"), ("validate", "again")])
def test_a_token_without_an_embedding_in_the_target_is_one_line(grown, trainer, stage, name):
    target, make = grown
    texts = [*TEXTS[:5], "w1 <new> w2", *TEXTS[5:]]
    module = DistillationModule(target, draft_layers=1)
    with pytest.raises(UserError, match=rf"token id 24 of row 5 of {name} has no embedding in .*, which has 24") as no:
        getattr(trainer(max_steps=2, limit_val_batches=0 if stage == "fit" else 1.0), stage)(module, make(texts))
    assert "\n" not in str(no.value)
