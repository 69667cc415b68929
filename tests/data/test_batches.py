import datasets
import pytest
import torch

from tempspec.data.batches import Collate, EncodedSets
from tempspec.data.grouping import Padding
from tempspec.data.loaders import Fetched


def rows(*ids, **columns):
    return datasets.Dataset.from_list(
        [
            {
                "input_ids": list(row),
                "loss_mask": [False] + [True] * (len(row) - 1),
                "generation_temperature": 0.5,
                "key": 2**62 + len(row),
            }
            | {name: values[index] for name, values in columns.items()}
            for index, row in enumerate(ids)
        ]
    )


def batch(sets, numbers, **options):
    read = EncodedSets(sets)
    return Collate(9, **options)(read.__getitems__([Fetched(number, False) for number in numbers]))


def test_rows_of_several_sets_come_in_the_order_asked_for():
    made = batch([rows([1, 2], [3, 4, 5]), rows([6, 7, 8, 9]).select([0])], [2, 0, 1, 0])
    assert made["input_ids"].tolist() == [[6, 7, 8, 9], [1, 2, 9, 9], [3, 4, 5, 9], [1, 2, 9, 9]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert made["loss_mask"].tolist() == (made["attention_mask"].bool() & (torch.arange(4) > 0)).tolist()
    assert made["row"].tolist() == [2, 0, 1, 0]
    assert made["set_index"].tolist() == [1, 0, 0, 0]
    assert made["key"].tolist() == [2**62 + length for length in (4, 2, 3, 2)]


def test_a_filler_weighs_nothing():
    read = EncodedSets([rows([1, 2])])
    assert Collate(0)([read[Fetched(0, True)], read[Fetched(0, False)]])["weight"].tolist() == [0, 1]


def test_no_token_is_an_object_of_pythons():
    row = EncodedSets([rows([1, 2, 3])])[Fetched(0, False)]
    assert all(row[name].nbytes <= 8 * 3 for name in ("input_ids", "loss_mask"))


def test_positions_begin_again_with_each_document_of_a_row():
    made = batch([rows(range(6), range(4), starts=[[0, 2, 5], [0]])], [0, 1])
    assert made["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    assert made["input_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 9, 9]]


@pytest.mark.parametrize(
    ("columns", "options"), [({}, {}), ({"starts": [[0], [0]]}, {}), ({"starts": [[0, 2], [0]]}, {"apart": False})]
)
def test_one_document_alone_has_no_positions(columns, options):
    assert "position_ids" not in batch([rows(range(6), range(4), **columns)], [0, 1], **options)


def test_sets_with_and_without_starts_share_a_batch():
    made = batch([rows(range(4), starts=[[0, 1]]), rows(range(3))], [1, 0])
    assert made["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]


def test_a_batch_is_as_long_as_the_padding_says():
    made = batch([rows(range(130), range(20))], [0, 1], padding=Padding(1024, 64))
    assert made["input_ids"].shape == made["loss_mask"].shape == (2, 192)
    assert made["attention_mask"].sum(1).tolist() == [130, 20]
