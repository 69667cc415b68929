"""Rows of like length in one batch, so that little of it is padding. It knows lengths, and no row (floor 5).

Axes: R rows of a set, S steps, W rows of a step on all processes, B of a batch, P processes.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from tempspec.core.noise import fold

_SHAPES = 16
"""Different lengths that batches are rounded up to, at least."""


@dataclass(frozen=True)
class Padding:
    """How long the rows of a batch are made.

    A length is rounded up to a multiple, so that batches have few different shapes. The multiple is at most a sixteenth
    of `longest`, in eights, so that short rows are not made of padding: 64 from 1,024 tokens on, 16 at 256, 1 below
    128.

    Args:
        longest: the most tokens of a row; no batch is longer.
        multiple: what lengths are rounded up to, at most.

    >>> Padding(4096, 64).of(1601), Padding(4096, 64).of(4090), Padding(1000, 64).of(999), Padding(24, 64).of(17)
    (1664, 4096, 1000, 17)
    """

    longest: int
    multiple: int = 1

    def of(self, length: int) -> int:
        """The length of a batch whose longest row has `length` tokens."""
        return int(self.of_all(np.array([length]))[0])

    def of_all(self, lengths: np.ndarray) -> np.ndarray:
        """As `of`, of many batches."""
        step = max(1, min(self.multiple, self.longest // _SHAPES // 8 * 8))
        return np.maximum(lengths, np.minimum(-(-lengths // step) * step, self.longest))

    def share(self, lengths: Sequence[int] | np.ndarray, batch_size: int, world: int = 1) -> float:
        """The share of positions that are padding.

        Args:
            lengths: of all rows, in the order in which they are read.
            batch_size: rows of a batch on each process.
            world: processes, which take the rows by turns.

        >>> Padding(8).share([4, 2, 1, 1], 2), Padding(8).share([4, 2, 1, 1], 1, world=2)
        (0.2, 0.0)
        """
        rows = np.asarray(lengths)
        steps = -(-len(rows) // (batch_size * world))
        rows_SBP = np.zeros((steps, batch_size, world), dtype=np.int64)
        rows_SBP.flat[: len(rows)] = rows
        positions = (self.of_all(rows_SBP.max(1)) * (rows_SBP > 0).sum(1)).sum()
        return float((positions - rows.sum()) / positions) if positions else 0.0


@dataclass(frozen=True)
class LengthGroups:
    """An order in which the rows of a step are of like length.

    Rows are sorted by length within windows, and the steps of a window come in an order of their own: a batch holds
    rows of one length, and no two batches that follow each other tell anything of each other's. Rows that fill no whole
    step come last, as they were.

    Args:
        lengths: tokens of each row.
        step: W, rows of a step on all processes together.
        window: steps within which rows are sorted; 0 leaves the order as it is.
        ends: where sets of rows end, which follow one another and are not mixed; one set by default.
    """

    lengths: np.ndarray
    step: int
    window: int
    ends: Sequence[int] = field(default_factory=list)

    def order(self, order_R: Tensor, key: Tensor | int = 0) -> Tensor:
        """The rows in another order, a function of these and the key.

        Args:
            order_R: row numbers; those of a set are together.
            key: decides on the order of the steps.
        """
        parts, begin = [order_R[:0]], 0
        for end in self.ends or [len(order_R)]:
            own, begun = order_R[begin:end], -begin % self.step  # a set fills up the step that the one before began
            whole = max(len(own) - begun, 0) // self.step * self.step
            parts += [own[:begun], self._grouped(own[begun : begun + whole], key), own[begun + whole :]]
            begin = end
        return torch.cat(parts) if self.window else order_R

    def digest(self) -> int:
        """A number that other lengths, or another window, do not share in practice; 0 for no grouping."""
        return zlib.crc32(self.lengths.astype("<i4").tobytes(), self.window) if self.window else 0

    def _grouped(self, rows_R: Tensor, key: Tensor | int) -> Tensor:
        window_R = torch.arange(len(rows_R)) // max(1, self.window * self.step)
        by_length_R = torch.from_numpy(self.lengths)[rows_R].argsort(stable=True)
        steps_SW = rows_R[_within(window_R, by_length_R)].view(-1, self.step)
        shuffled_S = fold(key, torch.arange(len(steps_SW))).argsort(stable=True)
        return steps_SW[_within(window_R[:: self.step], shuffled_S)].flatten()


@dataclass(frozen=True)
class PromptGroups:
    """An order in which the rows of one prompt follow each other, whatever set they are of; the prompts are mixed.

    Args:
        key_R: each row's prompt.
    """

    key_R: Tensor
    window: ClassVar[int] = 0

    def order(self, order_R: Tensor, key: Tensor | int = 0) -> Tensor:
        """The rows in another order, a function of these and the key; those of a prompt as they were.

        >>> groups = PromptGroups(torch.tensor([7, 8, 7, 8]))
        >>> sorted(groups.order(torch.arange(4)).view(2, 2).tolist())
        [[0, 2], [1, 3]]
        """
        return order_R[fold(key, self.key_R[order_R]).argsort(stable=True)]

    def digest(self) -> int:
        """A number that other prompts do not share in practice."""
        return zlib.crc32(self.key_R.numpy().tobytes())


def lengths(rows: datasets.Dataset, column: str = "input_ids") -> np.ndarray:
    """How long each row's list is; no list is read."""
    tables = rows.select_columns([column]).with_format("arrow").iter(10_000)
    found = [chunk for table in tables for chunk in pc.list_value_length(table.column(column)).chunks]
    return np.concatenate([np.zeros(0, np.int64), *(chunk.to_numpy().astype(np.int64) for chunk in found)])


def _within(window_R: Tensor, order_R: Tensor) -> Tensor:
    """An order, but no row leaves its window."""
    return order_R[window_R[order_R].argsort(stable=True)]
