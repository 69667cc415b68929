"""The tokens that a new head with a draft vocabulary drafts: the most frequent ones of its training text (floor 5).

Axes: V the target's vocabulary, R the head's own.
"""

from typing import Any

import datasets
import pyarrow as pa
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from tempspec.core.vocabulary import counted, most_frequent
from tempspec.errors import UserError
from tempspec.models.pair import Pair

__all__ = ["frequent_ids", "head_ids"]


def head_ids(pair: Pair, trainer: Trainer) -> Tensor | None:
    """What a new head drafts; None for all tokens, and where no fit says it.

    Args:
        pair: whose draft is a head, or not.
        trainer: of the stage; a fit has the training text.
    """
    head = pair.head
    if head is None or head.draft_vocabulary is None or pair.draft is not None or trainer.state.fn != "fit":
        return None
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return frequent_ids(data.train_rows, head.draft_vocabulary, pair.vocabulary)


def frequent_ids(rows: datasets.Dataset, size: int, vocabulary: int) -> Tensor:
    """The ids that occur most often among the tokens that a fit learns, ascending, int64 `[R]`; says their share.

    Args:
        rows: the encoded training rows.
        size: R.
        vocabulary: V, the real ids.

    Raises:
        UserError: as many as the target has, or more.
    """
    if size >= vocabulary:
        raise UserError(
            f"draft_vocabulary must be below the target's {vocabulary} tokens, got {size}: leave it out to draft all "
            "of them"
        )
    count_V = torch.zeros(vocabulary, dtype=torch.int64)
    for table in rows.select_columns(["input_ids", "loss_mask"]).with_format("arrow").iter(batch_size=1000):
        token, kept = (_flat(table.column(name)) for name in ("input_ids", "loss_mask"))
        count_V += counted(token, kept & (token < vocabulary), vocabulary)
    ids_R = most_frequent(count_V, size)
    share = float(count_V[ids_R].sum()) / max(int(count_V.sum()), 1)
    rank_zero_info(f"the head drafts {size} of {vocabulary} tokens: {share:.1%} of the training text's responses")
    return ids_R


def _flat(column: pa.ChunkedArray) -> Tensor:
    """All values of a column of lists."""
    return torch.from_numpy(column.combine_chunks().flatten().to_numpy(zero_copy_only=False).copy())
