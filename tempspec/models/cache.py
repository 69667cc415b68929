"""The ragged key-value cache: every row of a batch has its own length (floor 3).

All that touches transformers' cache classes is in this file. Storage is preallocated, `[rows, heads, capacity, dim]`;
a forward pass writes each row's new keys and values at the row's own positions. A rejected token stays where it is,
masked out by position, until the next pass overwrites it: taking tokens back costs nothing and copies nothing.

Axes: S slots (all rows), R rows of the call, N new tokens, H heads, D head size, L positions viewed.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin


def cache_argument(model: PreTrainedModel) -> str:
    """What the model's forward pass calls its cache: `cache` from transformers 5.24 on, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@dataclass(slots=True)
class Call:
    """Where the forward pass in flight writes and what it sees; all layers hold the same one.

    Attributes:
        place_RN: where each row's new tokens go, int64.
        rows: the slots of the call's rows, int64 `[R]`; None means the first R slots.
        view: L, how many leading positions attention sees.
        flat_RHN: by number of heads: the new tokens' indices into the flattened `[S * H * capacity]` storage.
    """

    place_RN: Tensor | None = None
    rows: Tensor | None = None
    view: int = 0
    flat_RHN: dict[int, Tensor] = field(default_factory=dict)


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values; allocated by the first pass, in its dtype and on its device."""

    def __init__(self, slots: int, capacity: int, call: Call) -> None:
        super().__init__()
        self.slots = slots
        self.capacity = capacity
        self.call = call

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate storage for keys and values shaped like these `[R, H, N, D]`."""
        heads, device = key_states.shape[1], key_states.device
        for name, states in (("keys", key_states), ("values", value_states)):
            setattr(self, name, states.new_zeros(self.slots, heads, self.capacity, states.shape[3]))
        self.first_SH1 = torch.arange(0, self.slots * heads * self.capacity, self.capacity, device=device)
        self.first_SH1 = self.first_SH1.view(self.slots, heads, 1)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new `[R, H, N, D]` states and return what attention sees, `[R, H, L, D]`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, store: Tensor | None, states: Tensor) -> Tensor:
        call = self.call
        assert store is not None
        rows, heads, _, size = states.shape
        if heads not in call.flat_RHN:
            assert call.place_RN is not None
            call.flat_RHN[heads] = self._flat(call.place_RN, call.rows)
        store.view(-1, size).index_copy_(0, call.flat_RHN[heads], states.reshape(-1, size))
        if call.rows is None:
            return store[:rows, :, : call.view]
        return store[:, :, : call.view].index_select(0, call.rows)

    def _flat(self, place_RN: Tensor, rows: Tensor | None) -> Tensor:
        """Places of rows as indices into the flattened storage, in the order `[R, H, N]`."""
        first_RH1 = self.first_SH1[: len(place_RN)] if rows is None else self.first_SH1[rows]
        return (first_RH1 + place_RN[:, None]).view(-1)

    def move(self, from_RN: Tensor, to_RN: Tensor, rows: Tensor | None) -> None:
        """Copy keys and values within rows; all are read before any is written."""
        source, goal = self._flat(from_RN, rows), self._flat(to_RN, rows)
        for store in (self.keys, self.values):
            assert store is not None
            flat = store.view(-1, store.shape[-1])
            flat.index_copy_(0, goal, flat.index_select(0, source))

    def copy(self, from_R: Tensor, to_R: Tensor, length: int) -> None:
        """Copy the first keys and values of rows to others."""
        for store in (self.keys, self.values):
            assert store is not None
            store[to_R, :, :length] = store[from_R, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return self.call.view, 0

    def get_seq_length(self) -> int:
        """The positions in view; rows have lengths of their own, which the caller keeps."""
        return self.call.view

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
        capacity: positions per row.
    """

    def __init__(self, layers: int, slots: int, capacity: int) -> None:
        self.call = Call()
        super().__init__(layers=[RaggedLayer(slots, capacity, self.call) for _ in range(layers)])
        self.slots = slots
        self.capacity = capacity

    def begin(self, place_RN: Tensor, rows: Tensor | None, view: int) -> None:
        """Say where the next forward pass writes (`place_RN`, per row) and how many places it sees."""
        call = self.call
        call.place_RN, call.rows, call.view = place_RN, rows, view
        call.flat_RHN = {}

    def end(self) -> None:
        """Forget the pass: what it computed for itself must not outlive it."""
        self.call.place_RN, self.call.rows, self.call.flat_RHN = None, None, {}

    def move(self, from_RM: Tensor, to_RM: Tensor, rows: Tensor | None) -> None:
        """Copy keys and values within rows, from places to places."""
        for layer in self.layers:
            layer.move(from_RM, to_RM, rows)

    def copy(self, from_R: Tensor, to_R: Tensor, length: int) -> None:
        """Copy the first keys and values of rows, so many places of each, to other rows."""
        for layer in self.layers:
            layer.copy(from_R, to_R, length)

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)
