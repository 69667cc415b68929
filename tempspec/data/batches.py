"""From encoded rows to the batches that the modules see (floor 5).

Axes: B batch, T positions.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tempspec.data.grouping import Padding
from tempspec.data.loaders import Fetched
from tempspec.data.rows import EncodedRow
from tempspec.data.sources import TEMPERATURE

STARTS = "starts"
"""The column of the positions at which a packed row's documents begin, 0 first; without it a row is one document."""

Batch = dict[str, Tensor]


class EncodedSets(Dataset[EncodedRow]):
    """Encoded corpora, one after the other, by `Fetched`; each row gets `row`, `set_index` and `weight`.

    What a row lists comes as numpy arrays: no token becomes an object of Python's.

    Args:
        sets: the corpora, in the order that `set_index` counts.
    """

    def __init__(self, sets: Sequence[datasets.Dataset]) -> None:
        self.sets = [rows.with_format("arrow") for rows in sets]
        self.ends = list(accumulate(len(rows) for rows in self.sets))

    def __getitem__(self, slot: Fetched) -> EncodedRow:
        return self.__getitems__([slot])[0]

    def __getitems__(self, slots: Sequence[Fetched]) -> list[EncodedRow]:
        """The rows of a batch, read at once from each set."""
        numbers = [bisect_right(self.ends, slot.row) for slot in slots]
        places: dict[int, list[int]] = defaultdict(list)
        for place, number in enumerate(numbers):
            places[number].append(place)
        found: dict[int, EncodedRow] = {}
        for number, own in places.items():
            begin = self.ends[number] - len(self.sets[number])
            table = self.sets[number][[slots[place].row - begin for place in own]]
            found |= zip(own, _rows(table), strict=True)
        return [
            found[place] | {"row": slot.row, "set_index": number, "weight": 0.0 if slot.filler else 1.0}
            for place, (slot, number) in enumerate(zip(slots, numbers, strict=True))
        ]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0


def _rows(table: pa.Table) -> list[EncodedRow]:
    """A table's rows; lists as arrays."""
    columns = {name: _values(table.column(name)) for name in table.column_names}
    return [{name: values[index] for name, values in columns.items()} for index in range(len(table))]


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    whole = column.combine_chunks()
    if not (pa.types.is_list(whole.type) or pa.types.is_large_list(whole.type)):
        return whole.to_numpy(zero_copy_only=False)
    ends = whole.offsets.to_numpy()
    return np.split(whole.flatten().to_numpy(zero_copy_only=False), ends[1:-1] - ends[0])


class Collate:
    """Rows to a batch, padded on the right.

    Args:
        pad_id: the token that fills up; it is masked everywhere.
        padding: how long the batch is; its longest row by default.
        apart: whether each document of a row sees itself alone.
    """

    def __init__(self, pad_id: int, padding: Padding | None = None, *, apart: bool = True) -> None:
        self.pad_id = pad_id
        self.padding = Padding(0) if padding is None else padding
        self.apart = apart

    def __call__(self, rows: Sequence[EncodedRow]) -> Batch:
        """The batch.

        Returns:
            `input_ids`, `attention_mask` int64 `[B, T]`; `loss_mask` bool `[B, T]`; `weight` float32 `[B]`, 0 or 1;
            `generation_temperature`, the bits of float32 as int32 `[B]`, which Lightning rounds under no precision;
            `key`, `row` (its number), `set_index` int64 `[B]`. Where a row holds several documents that
            are to be kept from each other, `position_ids` int64 `[B, T]` as well, which begin again with each.
        """
        length_B = np.array([len(row["input_ids"]) for row in rows])
        shape = len(rows), self.padding.of(int(length_B.max()))
        ids_BT, loss_BT = np.full(shape, self.pad_id, dtype=np.int64), np.zeros(shape, dtype=bool)
        for index, (row, length) in enumerate(zip(rows, length_B, strict=True)):
            ids_BT[index, :length] = row["input_ids"]
            loss_BT[index, :length] = row["loss_mask"]
        arrays = {
            "input_ids": ids_BT,
            "attention_mask": (np.arange(shape[1]) < length_B[:, None]).astype(np.int64),
            "loss_mask": loss_BT,
        }
        if self.apart and any(len(row.get(STARTS, ())) > 1 for row in rows):
            arrays["position_ids"] = np.stack([_positions(row.get(STARTS, ()), shape[1]) for row in rows])
        batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
        for name, dtype in _PER_ROW.items():
            batch[name] = torch.tensor([row[name] for row in rows], dtype=dtype)
        batch[TEMPERATURE] = batch[TEMPERATURE].view(torch.int32)
        return batch


def _positions(starts: Sequence[int], length: int) -> np.ndarray:
    """Positions within their documents, `[T]`; padding continues the last, where nothing sees it."""
    place_T = np.arange(length)
    begin_T = np.zeros_like(place_T)
    begin_T[np.asarray(starts, dtype=np.int64)] = starts
    return place_T - np.maximum.accumulate(begin_T)


_PER_ROW = {
    TEMPERATURE: torch.float32,
    "key": torch.int64,
    "row": torch.int64,
    "set_index": torch.int64,
    "weight": torch.float32,
}
