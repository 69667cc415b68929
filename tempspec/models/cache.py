"""The ragged key-value cache: every row of a batch has its own length (floor 3).

All that touches transformers' cache classes is in this file. Storage is preallocated, `[rows, capacity, heads, dim]`;
a forward pass writes each row's new keys and values at the row's own positions. A rejected token stays where it is,
masked out by position, until the next pass overwrites it: taking tokens back costs nothing and copies nothing.

Axes: S slots (all rows), R rows of the call, N new tokens, H heads, D head size, L positions viewed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


@dataclass(frozen=True, slots=True)
class Call:
    """Where the forward pass in flight writes and what it sees.

    Attributes:
        flat_RN: index of every new token into the flattened `[S * capacity]` storage, int64 `[R * N]`.
        rows: the slots of the call's rows, int64 `[R]`; None means the first `count` slots.
        count: R.
        view: L, how many leading positions attention sees.
    """

    flat_RN: Tensor
    rows: Tensor | None
    count: int
    view: int


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values; allocated by the first pass, in its dtype and on its device."""

    def __init__(self, slots: int, capacity: int) -> None:
        super().__init__()
        self.slots = slots
        self.capacity = capacity
        self.call: Call | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate storage for keys and values shaped like these `[R, H, N, D]`."""
        shape = (self.slots, self.capacity)
        self.keys = key_states.new_zeros(*shape, key_states.shape[1], key_states.shape[3])
        self.values = value_states.new_zeros(*shape, value_states.shape[1], value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new `[R, H, N, D]` states and return what attention sees, `[R, H, L, D]`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, store: Tensor | None, states: Tensor) -> Tensor:
        assert store is not None
        assert self.call is not None
        call = self.call
        flat = store.view(-1, *store.shape[2:])
        flat.index_copy_(0, call.flat_RN, states.transpose(1, 2).reshape(-1, *store.shape[2:]))
        seen = store[:, : call.view]
        seen = seen[: call.count] if call.rows is None else seen.index_select(0, call.rows)
        return seen.transpose(1, 2)

    def move(self, from_M: Tensor, to_M: Tensor) -> None:
        """Copy keys and values between places of the flattened storage; all are read before any is written."""
        for store in (self.keys, self.values):
            assert store is not None
            flat = store.view(-1, *store.shape[2:])
            flat.index_copy_(0, to_M, flat.index_select(0, from_M))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return (self.call.view if self.call else query_length), 0

    def get_seq_length(self) -> int:
        """The positions in view; rows have lengths of their own, which the caller keeps."""
        return self.call.view if self.call else 0

    def get_max_length(self) -> int:
        """The capacity of a row."""
        return self.capacity

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(store.nbytes for store in (self.keys, self.values) if store is not None)


class RaggedCache(Cache):
    """A `transformers` cache of `RaggedLayer`s; `begin` announces each forward pass.

    Args:
        layers: number of layers of the model.
        slots: rows.
        capacity: positions a row.
    """

    def __init__(self, layers: int, slots: int, capacity: int) -> None:
        super().__init__(layers=[RaggedLayer(slots, capacity) for _ in range(layers)])
        self.slots = slots
        self.capacity = capacity

    def begin(self, place_RN: Tensor, rows: Tensor | None, view: int) -> None:
        """Say where the next forward pass writes (`place_RN`, per row) and how many places it sees."""
        call = Call(self._flat(place_RN, rows), rows, len(place_RN), view)
        for layer in self.layers:
            layer.call = call

    def move(self, from_RM: Tensor, to_RM: Tensor, rows: Tensor | None) -> None:
        """Copy keys and values within rows, from places to places."""
        for layer in self.layers:
            layer.move(self._flat(from_RM, rows), self._flat(to_RM, rows))

    def _flat(self, place_RN: Tensor, rows: Tensor | None) -> Tensor:
        """Places of rows as places of the flattened storage, `[R * N]`."""
        slot_R = torch.arange(len(place_RN), device=place_RN.device) if rows is None else rows
        return (slot_R[:, None] * self.capacity + place_RN).flatten()

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)
