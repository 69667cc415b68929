"""From encoded rows to the batches that the modules see.

Axes: B batch, T positions.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tempspec.data.rows import EncodedRow
from tempspec.data.sampling import Slot
from tempspec.data.sources import TEMPERATURE

Batch = dict[str, Tensor]


class EncodedSets(Dataset[EncodedRow]):
    """Encoded corpora one behind the other, by `Slot`; each row gets `row`, `set_index` and `weight`.

    Args:
        sets: the corpora, in the order that `set_index` counts.
    """

    def __init__(self, sets: Sequence[datasets.Dataset]) -> None:
        self.sets = list(sets)
        self.ends = list(accumulate(len(rows) for rows in self.sets))

    def __getitem__(self, slot: Slot) -> EncodedRow:
        number = bisect_right(self.ends, slot.row)
        begin = self.ends[number] - len(self.sets[number])
        row: dict[str, Any] = self.sets[number][slot.row - begin]
        return row | {"row": slot.row, "set_index": number, "weight": 0.0 if slot.filler else 1.0}

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0


class Collate:
    """Rows to a batch, padded on the right to its longest row.

    Args:
        pad_id: the token that fills up; it is masked everywhere.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[EncodedRow]) -> Batch:
        """The batch.

        Returns:
            `input_ids`, `attention_mask` int64 `[B, T]`; `loss_mask` bool `[B, T]`; `weight` float32 `[B]`, 0 or 1;
            `generation_temperature`, the bits of float32 as int32 `[B]`, which Lightning rounds under no precision;
            `key`, `row` (its number), `set_index` int64 `[B]`.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), longest), self.pad_id, dtype=torch.int64),
            "attention_mask": torch.zeros(len(rows), longest, dtype=torch.int64),
            "loss_mask": torch.zeros(len(rows), longest, dtype=torch.bool),
        }
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][index, :length] = torch.tensor(row["input_ids"], dtype=torch.int64)
            batch["attention_mask"][index, :length] = 1
            batch["loss_mask"][index, :length] = torch.tensor(row["loss_mask"], dtype=torch.bool)
        for name, dtype in _PER_ROW.items():
            batch[name] = torch.tensor([row[name] for row in rows], dtype=dtype)
        batch[TEMPERATURE] = batch[TEMPERATURE].view(torch.int32)
        return batch


_PER_ROW = {
    TEMPERATURE: torch.float32,
    "key": torch.int64,
    "row": torch.int64,
    "set_index": torch.int64,
    "weight": torch.float32,
}
