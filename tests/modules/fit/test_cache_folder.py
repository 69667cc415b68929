import gc
import weakref

import datasets
import numpy as np
import pytest
import torch

from tempspec.modules.fit.cache_folder import ShardRoom, counted_tokens


def test_a_row_of_another_length_is_no_part_of_a_shard():
    room = ShardRoom(np.array([2, 1]))
    with pytest.raises(ValueError, match="row 0 of a shard: expected 2 tokens of token, got 1"):
        room.put(0, token=torch.zeros(1, 3, dtype=torch.int64))  # it would be repeated


def test_a_shard_holds_no_rows_own_tensor():
    """Small ones that live on between large ones that do not leave holes: 12 GiB for 370 MB on SmolLM2's logits."""
    room, gone = ShardRoom(np.full(5, 3)), []
    for row in (3, 0, 4, 2, 1):
        part = torch.full((3, 2), float(row), dtype=torch.float32)
        gone.append(weakref.ref(part))
        room.put(row, part=part)
    del part
    gc.collect()
    assert [each() for each in gone] == [None] * 5
    assert room.parts["part"][:, 0].tolist() == [row for row in range(5) for _ in range(3)]


def test_counted_tokens_are_those_that_something_predicts():
    masks = [[True, True, False], [], [False], [True], [False, True, True, True]]
    rows = datasets.concatenate_datasets([datasets.Dataset.from_dict({"loss_mask": part}) for part in (masks, masks)])
    assert counted_tokens(rows).tolist() == [sum(mask[1:]) for mask in masks] * 2
    assert counted_tokens(rows.select([4, 0])).tolist() == [3, 1]
