"""A text's own tokens, a chunk at a time: what transformers' loss and whole logits give, and no logits of a batch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tempspec.models.reading import Reading
from tempspec.modules.fit.text_loss import text_loss
from tempspec.modules.outputs import LogitSource
from tests import tiny
from tests.modules.wide import Wide

VOCABULARY, ROWS, LENGTH = 40, 3, 12


def batch():
    torch.manual_seed(1)
    mask = torch.rand(ROWS, LENGTH) < 0.7
    mask[:, 0] = False
    return {
        "input_ids": torch.randint(VOCABULARY, (ROWS, LENGTH)),
        "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.int64),
        "loss_mask": mask,
        "weight": torch.tensor([1.0, 0.0, 1.0]),
    }


def source(chunk):
    return LogitSource(VOCABULARY, chunk, whole=chunk == 0, reading=Reading(masked=False))


def found(model, chunk, rows=None):
    """Total, nats and every gradient."""
    model.zero_grad()
    result = text_loss(model, rows or batch(), source(chunk))
    result.total.backward()
    return [result.total.detach(), result.nats_BT, *(one.grad.clone() for one in model.parameters())]


@pytest.mark.parametrize(
    "model",
    [
        tiny.llama(0, VOCABULARY, layers=2),
        tiny.llama(1, VOCABULARY, tie_word_embeddings=True),
        tiny.gpt2(0, VOCABULARY),
    ],
)
@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_chunks_give_the_values_and_gradients_of_whole_logits(model, chunk):
    for one, other in zip(found(model.double(), chunk), found(model, 0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [0, 5])
def test_the_loss_is_that_of_transformers(chunk):
    """Its sum over labels, of which those that do not count are -100."""
    model, rows = tiny.llama(0, VOCABULARY, layers=2).double(), batch()
    counts = rows["loss_mask"] & (rows["weight"] > 0)[:, None]
    labels = rows["input_ids"].masked_fill(~counts, -100)
    expected = model(rows["input_ids"], labels=labels).loss
    result = text_loss(model, rows, source(chunk))
    assert result.weight_BT.sum() == counts[:, 1:].sum()
    torch.testing.assert_close(
        result.total / result.weight_BT.sum(), expected.double(), rtol=1e-6, atol=0.0
    )  # which is of float32
    torch.testing.assert_close(result.nats_BT.sum(), result.total.detach())
    assert (result.nats_BT[result.weight_BT == 0] == 0).all()


def test_a_token_of_another_place_has_another_loss():
    model = tiny.llama(0, VOCABULARY)
    right, wrong = batch(), batch()
    wrong["input_ids"] = wrong["input_ids"].roll(1, 1)
    assert not torch.isclose(found(model, 4, right)[0], found(model, 4, wrong)[0])


def test_bf16_weights_give_a_loss_in_float32():
    model = tiny.llama(0, VOCABULARY).bfloat16()
    chunked, whole = found(model, 5), found(model, 0)
    assert chunked[0].dtype == torch.float32
    torch.testing.assert_close(chunked[0], whole[0], rtol=1e-3, atol=0.0)
    assert all(one.dtype == torch.bfloat16 for one in chunked[2:])


@pytest.mark.parametrize("learns", [True, False])
def test_without_gradients_none_is_computed(learns):
    """Of parameters autograd asks for one even then, which would double the work of a validation."""
    model, made = tiny.llama(0, VOCABULARY), []
    weight = model.lm_head.weight

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made.extend(one for one in tree_leaves(result) if isinstance(one, torch.Tensor))
            return result

    with torch.set_grad_enabled(learns), Seeing():
        text_loss(model, batch(), source(5))
    own = weight.untyped_storage().data_ptr()
    assert learns == any(one.shape == weight.shape and one.untyped_storage().data_ptr() != own for one in made)


def test_no_logits_of_a_whole_batch_are_alive_at_once():
    model, most = tiny.llama(0, VOCABULARY), {}
    for chunk in (0, 4):
        with Wide(VOCABULARY) as wide:
            text_loss(model, batch(), source(chunk)).total.backward()
        most[chunk] = wide.most
    whole = ROWS * (LENGTH - 1) * VOCABULARY * 4
    assert most[4] < whole <= most[0] / 2
