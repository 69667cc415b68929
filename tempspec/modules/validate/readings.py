"""What the frozen target gives on validation batches, kept from one measurement to the next (floor 5).

The drafts of a study, and the validations of one training, are measured on the same texts against the same target. Its
hidden states of the counted tokens are small beside its logits, so that it reads every text once. Of a head's target
those of all tokens are kept, and the states that the head reads.

Axes: B batch, T positions, N the batch's tokens that count, H hidden.
"""

import hashlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.modules.kept import Kept
from tempspec.modules.outputs import Batch, HiddenStates, LogitSource

__all__ = ["TargetReadings"]

_LIMIT = 2**30
"""Bytes of hidden states that are kept: of 576 float32 numbers those of 466,000 tokens, or of 116,000 with the three
states of them that a head reads."""

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
        self._held: dict[tuple[Any, ...], list[Tensor]] = {}
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
        key = self._key(target, source, batch, kept.place_N, ())
        head = target.get_output_embeddings()
        if (held := self._held.get(key)) is not None:
            return HiddenStates(held[0].to(head.weight.device), head.weight, head.bias)
        side = source.of(target, batch, kept)
        if isinstance(side, HiddenStates):
            self._keep(key, [side.hidden_NH])
        return side

    def tapped(
        self, target: PreTrainedModel, batch: Batch, states: Sequence[int], source: LogitSource
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Some of the target's states and its hidden states, as `LogitSource.tapped` gives them without whole logits.

        Args:
            target: as in `of`.
            batch: `[B, T]` each.
            states: which ones.
            source: reads what is not known.
        """
        key = self._key(target, source, batch, None, tuple(states))
        if (held := self._held.get(key)) is not None:
            *known, last_BTH = (value.to(batch["input_ids"].device) for value in held)
            return tuple(known), last_BTH
        read, last_BTH = source.tapped(target, batch, states)
        self._keep(key, [*read, last_BTH])
        return read, last_BTH

    def _key(
        self,
        target: PreTrainedModel,
        source: LogitSource,
        batch: Batch,
        kept_N: Tensor | None,
        states: tuple[int, ...],
    ) -> tuple[Any, ...]:
        """What is read; nothing is known of another target."""
        if self._target() is not target:
            self._held, self._target, self._used = {}, weakref.ref(target), 0
        return source, states, _state(target), _digest(batch, kept_N)

    def _keep(self, key: tuple[Any, ...], read: Sequence[Tensor]) -> None:
        """Copies in the room, if they find one: one piece of memory, of which the system gives what is written.

        A tensor for each batch, kept while logits come and go, would leave holes in the heap.
        """
        if self._used + sum(map(_bytes, read)) > self.limit:
            return
        if self._room is None:
            self._room = torch.empty(self.limit, dtype=torch.uint8, device="cpu")
        self._held[key] = []
        for value in read:
            place = self._room[self._used : self._used + value.nbytes].view(value.dtype).view(value.shape)
            self._held[key].append(place.copy_(value))
            self._used += _bytes(value)


def _bytes(value: Tensor) -> int:
    return -(-value.nbytes // _ALIGNED) * _ALIGNED


def _state(model: PreTrainedModel) -> tuple[Any, ...]:
    """What changes when a model's weights, or the precision of its passes, are other ones."""
    device = model.device.type
    versions = sum(parameter._version for parameter in model.parameters())
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return model.dtype, device, autocast, versions


def _digest(batch: Batch, kept_N: Tensor | None) -> str:
    read = {name: batch[name] for name in _READ if name in batch}
    if kept_N is not None:
        read["kept"] = kept_N
    found = hashlib.blake2b(digest_size=16)
    for name, value in read.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
