"""Token ids that a model has no embedding for: refused of the target, read as the last one by all others (floor 5)."""

from collections.abc import Iterable, Mapping, Sequence

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from tempspec.errors import UserError
from tempspec.models.pair import Pair
from tempspec.models.ragged import largest_id, lend_embeddings

__all__ = ["check_ids", "loaded_sets", "make_ids_readable"]


def make_ids_readable(pair: Pair, models: Iterable[PreTrainedModel]) -> None:
    """Let models read every id of the tokenizer: those that one lacks as its last one, as in decoding.

    Args:
        pair: whose tokenizer counts.
        models: target and drafts; changed in place.
    """
    largest = max(pair.tokenizer.get_vocab().values())
    for model in models:
        if largest_id(model) < largest:
            lend_embeddings(model)


def check_ids(pair: Pair, sets: Mapping[str, datasets.Dataset]) -> None:
    """Refuse text that the target cannot read; looked for only where the tokenizer has more ids than it.

    Padding may be such an id: it is masked.

    Args:
        pair: whose target reads.
        sets: encoded rows by the name of their set.

    Raises:
        UserError: naming the id, its row and its set.
    """
    largest = largest_id(pair.target_model)
    if max(pair.tokenizer.get_vocab().values()) <= largest:
        return
    for name, rows in sets.items():
        if (found := _first_above(rows, largest)) is not None:
            row, token = found
            raise UserError(
                f"token id {token} of row {row} of {name} has no embedding in {pair.target}, which has {largest + 1}: "
                "take the tokenizer that it was trained with, or leave such text out"
            )


def loaded_sets(loaders: object, names: Sequence[str]) -> dict[str, datasets.Dataset]:
    """The encoded rows that a trainer's loader or loaders read, by the names of their sets, where they are such."""
    several = loaders if isinstance(loaders, list) else [loaders]
    known = [loader.dataset for loader in several if isinstance(loader, DataLoader)]
    return dict(zip(names, (rows for dataset in known for rows in getattr(dataset, "sets", ())), strict=False))


def _first_above(rows: datasets.Dataset, largest: int) -> tuple[int, int] | None:
    """The first row with a larger id, and that id."""
    begin = 0
    for table in rows.select_columns("input_ids").with_format("arrow").iter(batch_size=1000):
        column: pa.ChunkedArray = table.column("input_ids")
        if (pc.max(pc.list_flatten(column)).as_py() or 0) > largest:
            for place, ids in enumerate(column.to_pylist()):
                if max(ids, default=0) > largest:
                    return begin + place, next(token for token in ids if token > largest)
        begin += len(column)
    return None
