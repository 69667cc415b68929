"""The keys and values of a head while it decodes: a ragged cache of its own layers (floor 3).

Axes: R rows of a call, N new entries, L places viewed, A query heads, G key heads, D head size.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tempspec.models.cache import RaggedCache
from tempspec.models.ragged import bucketed, tree_view

__all__ = ["RaggedKeys"]


class RaggedKeys:
    """Every row has its own number of entries; `tempspec.interfaces.Keys`.

    The entry of token i is at place i, and sees the places up to its own. What comes after a row's next entry is
    masked until it is overwritten, so that a rejected entry is taken back by feeding another at its place.

    Args:
        layers: of the head, that keep keys.
        slots: the most rows.
        capacity: places per row.
        device: where to.
    """

    def __init__(self, layers: int, slots: int, capacity: int, device: torch.device | str = "cpu") -> None:
        self._cache = RaggedCache(layers, slots, capacity)
        self._place_L = torch.arange(capacity, device=device)
        self.position_BN = self._place_L[None, :0]
        self._seen_R1NL = torch.zeros(0, dtype=torch.bool, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return self._cache.nbytes

    def begin(
        self,
        start_R: Tensor,
        new: int,
        *,
        longest: int,
        rows: Tensor | None = None,
        visible_RNN: Tensor | None = None,
    ) -> None:
        """Say where the next step's entries go.

        Args:
            start_R: the place of each row's first new entry, int64.
            new: N, entries of each row.
            longest: the largest start, known without asking the device.
            rows: the slots, int64 `[R]`; None means the first R.
            visible_RNN: of a tree, what its entries so far see of each other, as in `RaggedModel.forward`.
        """
        view = min(bucketed(longest + new), len(self._place_L))
        place_RN = start_R[:, None] + self._place_L[:new]
        if visible_RNN is None:
            self.position_BN = place_RN
            self._seen_R1NL = (self._place_L[:view] <= place_RN[..., None])[:, None]
        else:
            _, self.position_BN, hidden_RNL = tree_view(self._place_L[None, :view], start_R, new, visible_RNN)
            self._seen_R1NL = ~hidden_RNL[:, None]
        self._cache.begin(place_RN, rows, view)

    def copy(self, from_R: Tensor, to_R: Tensor, length: int) -> None:
        """Copy the first entries of rows, so many of each, to other rows."""
        self._cache.copy(from_R, to_R, length)

    def attend(self, query_BAND: Tensor, key_BGND: Tensor, value_BGND: Tensor, layer: int = 0) -> Tensor:
        """See `Keys.attend`."""
        key_RGLD, value_RGLD = self._cache.layers[layer].update(key_BGND, value_BGND)
        grouped = query_BAND.shape[1] != key_RGLD.shape[1]
        return scaled_dot_product_attention(
            query_BAND, key_RGLD, value_RGLD, attn_mask=self._seen_R1NL, enable_gqa=grouped
        )
