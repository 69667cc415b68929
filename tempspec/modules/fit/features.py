"""The target's hidden states on disk: a head learns from them without a forward pass of the target (floor 5).

`generate --cache-features` writes them shard by shard, each whole or not at all; fit reads them by the number of a row.
The states that a head reads are kept of every token, the last hidden state where the target's law is learned.

Axes: B batch, T positions, L tokens of a shard, S states, H hidden, N response tokens.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.decoding.pace import Pace
from tempspec.errors import UserError
from tempspec.models.loading import load_config
from tempspec.models.pair import Pair
from tempspec.modules.fit.cache_folder import (
    CacheFolder,
    CacheOrigin,
    ShardRoom,
    Watch,
    counted_tokens,
    paced,
    record_of,
)
from tempspec.modules.fit.teacher import cache_origin, cached_target
from tempspec.modules.outputs import Batch, LogitSource, linear_heads, response
from tempspec.modules.processes import is_first, of_all, refused_by_all

__all__ = ["CachedFeatures", "FeatureCache", "head_states", "target_config", "write_features"]


@dataclass
class CachedFeatures:
    """What is kept of the target's states: `tempspec generate --cache-features` writes it, a head's fit learns from it.

    Args:
        folder: where it is.
        engine_states: the folder holds files of vLLM's `extract_hidden_states`, of speculators or of SpecForge, and
            these are the layer ids that the tool was given, in its order: those that the head reads, and the target's
            number of layers. The other options then do nothing. null is for our own files.
        dtype: what states are kept in; float32 is as exact as a forward pass in float32, at twice the size.
        shard_rows: rows of a file; an interrupted run loses at most so many.

    Raises:
        UserError: an option is out of its range.
    """

    folder: str
    engine_states: list[int] | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    shard_rows: int = 256

    def __post_init__(self) -> None:
        """Refuse empty shards."""
        if self.shard_rows < 1:
            raise UserError(f"features.shard_rows must be 1 or more, got {self.shard_rows}")

    @property
    def place(self) -> CacheFolder:
        """Where it is, with `~` resolved."""
        return CacheFolder(Path(self.folder).expanduser(), "features", "feature cache", ".safetensors", self.shard_rows)


class RowFeatures(NamedTuple):
    """What is kept of one row.

    Attributes:
        states_LSH: the states that a head reads, of all its tokens.
        last_NH: the last hidden states that predict response tokens.
    """

    states_LSH: Tensor
    last_NH: Tensor


@torch.no_grad()
def write_features(
    options: CachedFeatures, pair: Pair, data: Any, device: torch.device, watch: Watch | None = None
) -> None:
    """Write the target's states on the training rows, from where it stopped.

    Of several processes each reads every row, since each holds a part of the target's layers; the first one writes.

    Args:
        options: what is kept, and where.
        pair: whose target reads; its draft is a head, which says what states.
        data: the data module whose training rows it reads.
        device: where to compute.
        watch: shows how far it is.

    Raises:
        UserError: the draft is no head, the target's logits are no linear map of its states, another cache is in the
            folder, or the disk is too small.
    """
    if options.engine_states is not None:
        raise UserError("generate --cache-features writes its own files: leave features.engine_states out")
    states = head_states(pair)
    target, reading, origin = cached_target(pair, data, device)
    if not linear_heads([target]):
        raise UserError(f"a feature cache needs logits that are a linear map of states, which {pair.target} lacks")
    length_R, count_R, dtype = data.train_lengths, counted_tokens(data.train_rows), getattr(torch, options.dtype)
    place, tokens = options.place, int(length_R.sum())
    width = target.config.get_text_config().hidden_size
    size = dtype.itemsize * width * (len(states) * tokens + origin.tokens)
    with refused_by_all():
        if is_first():
            place.claim(_record(options, origin, states), origin.rows, size, "set features.dtype: bfloat16")
    rank_zero_info(place.estimate(origin.rows, tokens, size))
    source = LogitSource(pair.vocabulary, reading=reading)
    begun = of_all(place.begun(origin.rows))[0]  # the others may see another disk
    found = _rows(source, target, data.in_windows(begun, options.shard_rows), states, device)
    found = paced(found, lambda numbered: len(numbered[1].states_LSH), Pace("features", origin.rows, begun), watch)

    def save(file: Path, members: range) -> None:
        states, last = (ShardRoom(each_R[members.start : members.stop]) for each_R in (length_R, count_R))
        for number, row in islice(found, len(members)):
            states.put(number - members.start, states=row.states_LSH.to(dtype))
            last.put(number - members.start, last=row.last_NH.to(dtype))
        ends = {"states_ends": states.end_R, "last_ends": last.end_R}
        places = {name: torch.tensor(end_R, dtype=torch.int64) for name, end_R in ends.items()}
        save_file(states.parts | last.parts | places, file)

    if is_first():
        place.write(origin.rows, save)
    else:
        deque(found, maxlen=0)


class FeatureCache:
    """A finished cache, read by the numbers of rows.

    Args:
        options: where it is, and what it should hold.
        pair: whose head learns.
        data: the data module, set up for fit.

    Raises:
        UserError: there is none, it is unfinished, or it was made of something else.
    """

    def __init__(self, options: CachedFeatures, pair: Pair, data: Any) -> None:
        place = options.place
        self.states = head_states(pair)
        record = _record(options, cache_origin(pair, data), self.states)
        held = place.finished(record, ("states", "dtype", "shard_rows"))
        self.apart = bool(held["apart"])
        self._shards, self._rows = place.shards(), options.shard_rows
        self._open: dict[int, _Shard] = {}

    def __call__(self, batch: Batch, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
        """The states of a batch's text, `[B, T, H]` each, and the last hidden states; 0 where nothing is kept."""
        ids_BT, keep_BT = batch["input_ids"], response(batch)
        found = [
            self._row(int(row)) if weight > 0 else None
            for row, weight in zip(batch["row"].tolist(), batch["weight"].tolist(), strict=True)
        ]
        known = next((row for row in found if row is not None), self._row(0))
        count, width = known.states_LSH.shape[1:]
        states_SBTH = torch.zeros(count, *ids_BT.shape, width, dtype=dtype)
        last_BTH = torch.zeros(*ids_BT.shape, width, dtype=dtype)
        for number, row in enumerate(found):
            if row is not None:
                states_SBTH[:, number, : len(row.states_LSH)] = row.states_LSH.transpose(0, 1)
                last_BTH[number, :-1][keep_BT[number].cpu()] = row.last_NH.to(dtype)
        return tuple(states_SBTH.to(ids_BT.device).unbind()), last_BTH.to(ids_BT.device)

    def _row(self, number: int) -> RowFeatures:
        shard, place = divmod(number, self._rows)
        if shard not in self._open:
            self._open[shard] = _Shard(self._shards[shard])
        return self._open[shard].row(place)


class _Shard:
    """A file whose states stay on the disk until a row is asked for."""

    def __init__(self, file: Path) -> None:
        self._file: Any = safe_open(file, "pt")
        self._ends = {name: self._file.get_tensor(f"{name}_ends").tolist() for name in ("states", "last")}

    def row(self, place: int) -> RowFeatures:
        """One of its rows."""
        parts = self._ends.items()
        return RowFeatures(*(self._file.get_slice(name)[ends[place] : ends[place + 1]] for name, ends in parts))


def head_states(pair: Pair) -> tuple[int, ...]:
    """The states that the pair's head reads: a folder's own, or those of a new one."""
    if pair.head is None:
        raise UserError("a feature cache is for heads: name one by model.head, such as Eagle3")
    if pair.draft is not None:
        draft: Any = pair.load_draft("auto")
        return draft.states
    return pair.head.states(target_config(pair).num_hidden_layers)


def target_config(pair: Pair) -> Any:
    """The target's text configuration, without its weights."""
    options = pair.options
    config = load_config(pair.target, revision=options.target_revision, trust_remote_code=options.trust_remote_code)
    return config.get_text_config()


def _record(options: CachedFeatures, origin: CacheOrigin, states: tuple[int, ...]) -> dict[str, Any]:
    return record_of(options, origin) | {"states": list(states)}


def _rows(
    source: LogitSource, target: PreTrainedModel, batches: Any, states: tuple[int, ...], device: torch.device
) -> Iterator[tuple[int, RowFeatures]]:
    """What is kept of each row, and its number."""
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        tapped, last_BTH = source.tapped(target, batch, states)
        states_BTSH, keep_BT = torch.stack(tapped, 2), response(batch)
        rows = zip(batch["row"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
        for number, (row, length) in enumerate(rows):
            yield row, RowFeatures(states_BTSH[number, :length], last_BTH[number, :-1][keep_BT[number]])
