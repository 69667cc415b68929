from itertools import chain

import datasets
import numpy as np
import pytest
import torch

from tempspec.data.grouping import LengthGroups, Padding, PromptGroups, lengths


@pytest.fixture
def tokens():
    """Lengths of 3,000 conversations, exponential with a mean of 400, cut at 1,024."""
    return np.clip(np.random.default_rng(0).exponential(400, 3000), 4, 1024).astype(np.int64)


def shuffled(rows, seed=0):
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [1, 3, 256])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 61])
def test_every_row_comes_once(rows, window):
    groups = LengthGroups(np.arange(rows) % 5, 8, window)
    assert sorted(groups.order(shuffled(rows)).tolist()) == list(range(rows))


def test_no_window_leaves_the_order_as_it_is():
    order = shuffled(20)
    assert torch.equal(LengthGroups(np.arange(20), 4, 0).order(order), order)


def test_a_window_holds_its_own_rows_sorted_into_steps():
    tokens, order = np.arange(48)[::-1].copy(), shuffled(48)
    steps_WSR = LengthGroups(tokens, 4, 3).order(order).view(4, 3, 4)
    for steps_SR, before_R in zip(steps_WSR, order.view(4, 12), strict=True):
        assert set(steps_SR.flatten().tolist()) == set(before_R.tolist())
        by_length = sorted(sorted(tokens[step_R].tolist()) for step_R in steps_SR.numpy())
        assert list(chain(*by_length)) == sorted(tokens[before_R.numpy()].tolist())


def test_steps_of_a_window_come_in_an_order_of_their_own():
    groups, order = LengthGroups(np.arange(400), 4, 100), torch.arange(400)
    first, again, other = (groups.order(order, key).view(-1, 4)[:, 0].tolist() for key in (1, 1, 2))
    assert first == again
    assert first != sorted(first) != other
    assert first != other


def test_sets_are_not_mixed_and_their_steps_do_not_overlap():
    tokens = np.concatenate([np.arange(13), np.arange(21), np.arange(2), np.arange(9)])
    ends = [13, 34, 36, 45]
    order = LengthGroups(tokens, 4, 256, ends).order(torch.arange(45)).numpy()
    assert (np.diff(np.searchsorted(ends, order, "right")) >= 0).all()
    spread = [np.ptp(tokens[step]) for step in order[16:32].reshape(-1, 4)]  # whole steps of the second set
    assert spread == [3, 3, 3, 3]


@pytest.mark.parametrize(("batch_size", "world"), [(8, 1), (16, 1), (4, 4)])
def test_grouping_leaves_a_tenth_of_the_padding(tokens, batch_size, world):
    padding = Padding(1024)
    order = shuffled(len(tokens))
    plain = padding.share(tokens[order], batch_size, world)
    groups = LengthGroups(tokens, batch_size * world, 64)
    assert padding.share(tokens[groups.order(order)], batch_size, world) < 0.1 * plain


def test_the_share_is_that_of_the_batches_themselves(tokens):
    padding, positions = Padding(1024, 64), 0
    for start in range(0, len(tokens), 7):
        batch = tokens[start : start + 7]
        positions += len(batch) * padding.of(int(batch.max()))
    assert padding.share(tokens, 7) == pytest.approx(1 - tokens.sum() / positions)


@pytest.mark.parametrize(
    ("longest", "length", "expected"),
    [
        (4096, 1, 64),
        (4096, 65, 128),
        (4096, 4090, 4096),
        (256, 17, 32),
        (128, 17, 24),
        (127, 17, 17),
        (1000, 990, 1000),
    ],
)
def test_lengths_are_rounded_up_but_short_rows_by_little(longest, length, expected):
    assert Padding(longest, 64).of(length) == expected


def test_lengths_are_those_of_the_rows_whatever_was_selected():
    rows = datasets.Dataset.from_dict({"input_ids": [[1] * n for n in (3, 0, 5, 2)], "key": [1, 2, 3, 4]})
    both = datasets.concatenate_datasets([rows, rows.select([2, 0])])
    assert lengths(both).tolist() == [3, 0, 5, 2, 5, 3]
    assert lengths(rows.select([])).tolist() == []


def test_other_lengths_or_another_window_have_another_digest():
    made = [LengthGroups(np.array(one), 2, window).digest() for one, window in (([1, 2], 4), ([2, 1], 4), ([1, 2], 5))]
    assert len(set(made)) == 3
    assert LengthGroups(np.array([1, 2]), 2, 0).digest() == 0


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_prompt_follow_each_other(seed):
    key_R = torch.arange(2**40, 2**40 + 20).repeat(3)
    groups = PromptGroups(key_R)
    order = groups.order(torch.arange(60), seed)
    assert sorted(order.tolist()) == list(range(60))
    assert (key_R[order].view(20, 3) == key_R[order].view(20, 3)[:, :1]).all()
    assert (order.view(20, 3).diff() > 0).all()  # as they were
    assert key_R[order].tolist() != groups.key_R[groups.order(torch.arange(60), seed + 1)].tolist()
    assert groups.digest() != PromptGroups(key_R + 1).digest()
