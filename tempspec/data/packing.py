"""Documents joined to rows of one length (floor 5)."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np


class Block(NamedTuple):
    """A row of packed documents.

    Attributes:
        ids: int32 `[T]`.
        starts: the positions at which documents begin, 0 first: what continues from the block before begins there.
        learned: bool `[T]`; the first token of a document answers nothing, and is not learned.
    """

    ids: np.ndarray
    starts: list[int]
    learned: np.ndarray


def pack(documents: Iterable[np.ndarray], length: int, boundary: int | None = None) -> Iterator[Block]:
    """Join documents and cut the stream into blocks; nothing is lost, and the last block may be shorter.

    Args:
        documents: token ids.
        length: the tokens of a block.
        boundary: a token that both ends and starts documents (BOS and EOS in one): it is not doubled where two meet.
            It belongs to the document that it starts, and is learned as the end of the one before.

    >>> [(block.ids.tolist(), block.starts) for block in pack([np.array([1, 2, 0]), np.array([3, 4, 5, 0])], 4)]
    [([1, 2, 0, 3], [0, 3]), ([4, 5, 0], [0])]
    """
    parts: list[np.ndarray] = []
    starts: list[int] = []
    firsts: list[int] = []
    filled = 0
    for document in documents:
        position = 1 if parts and parts[-1][-1] == document[0] == boundary else 0
        starts.append(filled - position)
        firsts += [] if position else [filled]
        while position < len(document):
            taken = document[position : position + length - filled]
            parts.append(taken)
            position, filled = position + len(taken), filled + len(taken)
            if filled == length:
                yield _block(parts, starts, firsts)
                parts, starts, firsts, filled = [], [], [], 0
    if parts:
        yield _block(parts, starts, firsts)


def _block(parts: list[np.ndarray], starts: list[int], firsts: list[int]) -> Block:
    ids = np.concatenate(parts)
    learned = np.ones(len(ids), dtype=bool)
    learned[[0, *firsts]] = False
    return Block(ids, sorted({0, *starts}), learned)
