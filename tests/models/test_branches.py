"""Rows that are read as one that branches get what each gets alone; models that cannot be told so are found out."""

import pytest
import torch
import transformers

from tempspec.models.branches import _worth_it, alike, branching, read_branches
from tempspec.models.heads import hidden_states
from tempspec.models.reading import Reading

from .test_reading import APART, TOGETHER, build

MODELS = APART | TOGETHER
OTHERS = ["a short window", "windows and not", "soft caps", "ALiBi", "convolutions between"]


def batch_of(*rows):
    """Rows of (key, ids), padded on the right."""
    longest = max(len(ids) for _, ids in rows)
    return {
        "input_ids": torch.tensor([[*ids, *[1] * (longest - len(ids))] for _, ids in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for _, ids in rows]),
        "key": torch.tensor([key for key, _ in rows]),
    }


BATCH = batch_of(
    (7, [5, 6, 7, 8, 9, 2, 3]),
    (8, [9, 8, 7, 6]),
    (7, [5, 6, 7, 8, 9, 4]),
    (9, [3, 4, 5, 6, 2]),
    (7, [5, 6, 7, 8, 9, 2, 9, 9]),
    (9, [4, 4, 5, 6, 2]),  # the key alone does not make rows begin alike
)


def plainly(model, reads=None):
    def read(batch):
        if reads is not None:
            reads.append(len(batch["input_ids"]))
        return hidden_states(model, **Reading().inputs(batch))

    return read


@pytest.mark.parametrize("name", [name for name in MODELS if name not in OTHERS])
@torch.no_grad()
def test_branches_give_what_each_row_gives_alone(name):
    model = build(*MODELS[name]).eval()
    assert branching(model)
    reads = []
    found, alone = read_branches(model, BATCH, plainly(model, reads)), plainly(model)(BATCH)
    kept = BATCH["attention_mask"].bool()
    torch.testing.assert_close(found[kept], alone[kept], rtol=1e-4, atol=1e-4)
    assert reads == [3]  # the rows of prompts that are there once, or begin otherwise


@torch.no_grad()
def test_a_shared_beginning_is_read_once():
    model, tokens = build(*APART["Llama"]).eval(), []
    model.get_input_embeddings().register_forward_hook(lambda _, given, out: tokens.append(given[0].numel()))
    read_branches(model, {name: value[[0, 2, 4]] for name, value in BATCH.items()}, plainly(model))
    assert tokens == [5 + 3 * 3]


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_mind_no_mask_or_have_windows_do_not_branch(name):
    assert not branching(build(*MODELS[name]))


def test_a_window_longer_than_what_is_tried_does_not_branch():
    """GPT-Neo's counts places in the row, which lie further apart there than positions do."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 512}
    config = {"attention_types": [[["global", "local"], 1]], "window_size": 256, "bos_token_id": 0, "eos_token_id": 0}
    assert not branching(build(transformers.GPTNeoConfig, sizes | config))


def test_trying_leaves_the_model_in_its_mode():
    model = build(*APART["Llama"])
    for training in (True, False):
        model.train(training)
        branching(model)
        assert model.training == training


def test_a_model_that_looks_ahead_does_not_branch():
    model = build(*APART["Llama"])
    assert branching(model)
    layer = model.model.layers[0].self_attn
    layer.forward = lambda hidden_states, **_: (hidden_states.flip(1), None)
    assert not branching(model)


@pytest.mark.parametrize(
    ("rows", "width", "shared", "expected"),
    [(7, 100, 60, True), (7, 100, 10, False), (1, 100, 100, False), (7, 2000, 1000, False)],
    ids=["a prompt", "a short prompt", "one answer", "long answers"],
)
def test_rows_branch_where_enough_is_saved(rows, width, shared, expected):
    assert _worth_it(rows, width, shared) == expected


def test_rows_begin_alike_as_far_as_all_do():
    assert alike(torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9, 4]])) == 2
    assert alike(torch.tensor([[1, 2], [2, 2]])) == 0
