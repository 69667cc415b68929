from types import SimpleNamespace

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from tempspec.models import branches
from tempspec.models.reading import Reading
from tempspec.modules import begin_reading
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.kept import Kept
from tempspec.modules.language_model import LanguageModelModule
from tempspec.modules.outputs import LogitSource, reading_of
from tests import tiny

STARTS = [0, 4, 9]
LENGTH = 13


@pytest.fixture
def llama():
    return tiny.llama(0, 24, 2, gain=6, inner=6, num_key_value_heads=2)


@pytest.fixture
def bloom():
    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=24, hidden_size=16, n_layer=1, n_head=2))


def rows(*ids, position=None):
    """A batch of rows of token ids, of which all but the first count."""
    longest = max(map(len, ids))
    padded = torch.tensor([list(row) + [0] * (longest - len(row)) for row in ids])
    seen = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    batch = {"input_ids": padded, "attention_mask": seen, "loss_mask": seen.bool() & (torch.arange(longest) > 0)}
    return batch if position is None else batch | {"position_ids": torch.tensor(position)}


RIGHT = rows(range(1, 12), range(5, 9), range(2, 10))
"""Rows that are padded on the right."""


@pytest.fixture
def packed():
    """A row of three documents beside a shorter row, and the four documents as rows of their own."""
    ids = torch.randint(1, 24, (2, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    ids[1] = ids[1][:7]
    position = [[*range(4), *range(5), *range(4)], list(range(LENGTH))]
    together = rows(*ids, position=position)
    together["loss_mask"][0, STARTS] = False
    return together, rows(ids[0][:4], ids[0][4:9], ids[0][9:], ids[1])


@pytest.mark.parametrize("whole", [False, True])
def test_packed_documents_give_what_rows_of_their_own_give(llama, packed, whole):
    outputs = LogitSource(24, None, whole, reading_of([llama], SimpleNamespace(packed=True)))
    together, alone = (outputs.of(llama, batch, Kept.of(batch["loss_mask"][:, 1:])) for batch in packed)
    if not whole:
        together, alone = together.hidden_NH, alone.hidden_NH
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    across = LogitSource(24, None, True).of(llama, packed[0], Kept.of(packed[0]["loss_mask"][:, 1:]))
    if whole:
        assert (across - alone).abs().max() > 0.1


def test_gradients_need_no_padding_mask(llama):
    batch = rows(range(1, 12), range(5, 9), range(2, 10))

    def gradients(reading):
        llama.zero_grad()
        LogitSource(24, None, True, reading).of(llama, batch, Kept.of(batch["loss_mask"][:, 1:])).log_softmax(-1)[
            :, 3
        ].sum().backward()
        return [parameter.grad.clone() for parameter in llama.parameters()]

    assert reading_of([llama], None) == Reading(masked=False, apart=True)
    for bare, masked in zip(gradients(Reading(False)), gradients(Reading(True)), strict=True):
        torch.testing.assert_close(bare, masked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["target", "draft"])
def test_no_mask_changes_no_bit_where_padding_is_right(name):
    model = tiny.llama(0 if name == "target" else 1, 24, 2, gain=6, inner=6, num_key_value_heads=2).eval()
    kept = Kept.of(RIGHT["loss_mask"][:, 1:])
    bare, masked = (LogitSource(24, None, True, Reading(way)).of(model, RIGHT, kept) for way in (False, True))
    assert torch.equal(bare, masked)


def test_padding_on_the_left_needs_its_mask(llama):
    left = {name: value.flip(1) for name, value in RIGHT.items()}
    kept = Kept.of(left["loss_mask"][:, 1:] & left["attention_mask"].bool()[:, :-1])
    bare, masked = (LogitSource(24, None, True, Reading(way)).of(llama, left, kept) for way in (False, True))
    assert (bare - masked).abs().max() > 0.1


def test_models_that_cannot_part_documents_are_named_in_one_line(llama, bloom, caplog):
    assert not reading_of([llama, bloom], SimpleNamespace(packed=True)).apart
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("the documents of a packed row see each other: BloomForCausalLM cannot separate them")


@pytest.mark.parametrize("data", [None, SimpleNamespace(), SimpleNamespace(packed=False)])
def test_nothing_is_said_where_rows_are_one_document(bloom, data, caplog):
    reading_of([bloom], data)
    assert not caplog.records


def test_the_language_models_loss_is_that_of_its_documents(llama, packed, pair):
    module = LanguageModelModule(tokenizer=str(pair / "target"))
    module.model, module.log = llama, lambda *args, **kwargs: None
    whole, parts = (
        module.training_step(batch | {"weight": torch.ones(len(batch["input_ids"]))}, 0) for batch in packed
    )
    torch.testing.assert_close(whole, parts)


def test_a_run_masks_nothing_and_each_stage_tries_its_models(pair, data, trainer):
    module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), validation_temperatures=[1.0])
    own = trainer(max_steps=1, limit_val_batches=1)
    own.fit(module, data)
    fitted = module.source
    assert fitted.reading == Reading(masked=False, apart=True)
    own.validate(module, data, verbose=False)
    assert module.source is not fitted


def test_answers_to_one_prompt_are_measured_as_if_each_were_read(pair, data, trainer, monkeypatch):
    """The two validation sets are the same prompts."""
    found, rows = [], []
    own = branches._branches
    monkeypatch.setattr(
        branches, "_branches", lambda model, *given: (rows.append(len(given[0])), own(model, *given))[1]
    )
    for able in (True, False):
        if not able:
            monkeypatch.setattr(begin_reading, "branching", lambda model: False)
        module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), validation_temperatures=[0.5, 1.0])
        found.append(trainer().validate(module, data, verbose=False)[0])
        assert module.source.reading.branches == able
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert rows == [3, 3, *[2] * 12]  # each model is tried, and reads six prompts once for both sets


def test_a_fit_reads_its_rows_as_they_are(pair, data, trainer):
    module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), validation_temperatures=[1.0])
    trainer(max_steps=1, limit_val_batches=1).fit(module, data)
    assert not module.source.reading.branches
