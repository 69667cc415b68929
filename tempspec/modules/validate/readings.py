"""What the frozen target gives on validation batches, kept from one measurement to the next (floor 5).

The drafts of a study, and the validations of one training, are measured on the same texts against the same target. Its
hidden states of the counted tokens are small beside its logits, so that it reads every text once.

Axes: B batch, T positions, N the batch's tokens that count, H hidden.
"""

import hashlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.modules.kept import Kept
from tempspec.modules.outputs import Batch, HiddenStates, LogitSource

__all__ = ["TargetReadings"]

_LIMIT = 2**28
"""Bytes of hidden states that are kept: 116,000 tokens of 576 float32 numbers, or 32,000 of 4,096 in bf16."""

_ALIGNED = 64

_READ = ("input_ids", "attention_mask", "position_ids", "key")
"""What decides what a model gives on a batch. Rows of one key may be read together, which moves the last bits."""


class TargetReadings:
    """The target's hidden states by batch, in the host's memory. Copies and pickles of it begin empty.

    They are those of one model as it is: another one, or one whose weights were changed in place, is read anew. So is
    a batch that finds no room.

    Args:
        limit: bytes at most.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self.limit = limit
        self._target: Callable[[], PreTrainedModel | None] = lambda: None
        self._held: dict[tuple[Any, ...], Tensor] = {}
        self._room: Tensor | None = None
        self._used = 0

    def __reduce__(self) -> tuple[type["TargetReadings"], tuple[int]]:
        return type(self), (self.limit,)

    def of(self, target: PreTrainedModel, batch: Batch, kept: Kept, source: LogitSource) -> HiddenStates | Tensor:
        """The target's side at the kept positions, as `LogitSource.of` gives it, from memory where it is there.

        Args:
            target: whole on its device. One in parts has to be read by all processes at once: ask the source.
            batch: `[B, T]` each.
            kept: its positions.
            source: reads what is not known.
        """
        if self._target() is not target:
            self._held, self._target, self._used = {}, weakref.ref(target), 0
        key = (source, _state(target), _digest(batch, kept))
        head = target.get_output_embeddings()
        if (hidden_NH := self._held.get(key)) is not None:
            return HiddenStates(hidden_NH.to(head.weight.device), head.weight, head.bias)
        side = source.of(target, batch, kept)
        if isinstance(side, HiddenStates) and self._used + side.hidden_NH.nbytes <= self.limit:
            self._held[key] = self._kept(side.hidden_NH)
        return side

    def _kept(self, hidden_NH: Tensor) -> Tensor:
        """A copy in the room: one piece of memory, of which the system gives what is written.

        A tensor for each batch, kept while logits come and go, would leave holes in the heap.
        """
        if self._room is None:
            self._room = torch.empty(self.limit, dtype=torch.uint8, device="cpu")
        place = self._room[self._used : self._used + hidden_NH.nbytes].view(hidden_NH.dtype).view(hidden_NH.shape)
        self._used += -(-hidden_NH.nbytes // _ALIGNED) * _ALIGNED
        return place.copy_(hidden_NH)


def _state(model: PreTrainedModel) -> tuple[Any, ...]:
    """What changes when a model's weights, or the precision of its passes, are other ones."""
    device = model.device.type
    versions = sum(parameter._version for parameter in model.parameters())
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return model.dtype, device, autocast, versions


def _digest(batch: Batch, kept: Kept) -> str:
    read = {name: batch[name] for name in _READ if name in batch} | {"kept": kept.place_N}
    found = hashlib.blake2b(digest_size=16)
    for name, value in read.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
