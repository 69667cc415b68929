"""Which positions of a batch count, found once: whatever is looked up by them afterwards waits for no GPU (floor 5).

A mask as an index makes torch count what it keeps, and the host waits for the count. Here it is counted once a batch.

Axes: B batch, T positions, N those that are kept, X whatever a position has.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Kept"]


class Kept(NamedTuple):
    """Positions of a batch that count, row by row.

    Attributes:
        mask_BT: which they are, bool.
        place_N: their numbers among all B x T.
    """

    mask_BT: Tensor
    place_N: Tensor

    @classmethod
    def of(cls, mask_BT: Tensor) -> "Kept":
        """The positions that a mask keeps. The host waits for their number, once.

        >>> Kept.of(torch.tensor([[True, False], [True, True]])).place_N
        tensor([0, 2, 3])
        """
        return cls(mask_BT, mask_BT.flatten().nonzero().squeeze(-1))

    @classmethod
    def everywhere(cls, value_BT: Tensor) -> "Kept":
        """All positions of a tensor's shape. The host waits for nothing.

        >>> Kept.everywhere(torch.tensor([[5, 6], [7, 8]])).place_N
        tensor([0, 1, 2, 3])
        """
        whole_BT = torch.ones_like(value_BT, dtype=torch.bool)
        return cls(whole_BT, torch.arange(whole_BT.numel(), device=value_BT.device))

    def values(self, value_BT: Tensor) -> Tensor:
        """The kept ones of `[..., B, T]`, as `value_BT[..., mask_BT]` gives them.

        >>> Kept.of(torch.tensor([[True, False], [True, True]])).values(torch.tensor([[5, 6], [7, 8]]))
        tensor([5, 7, 8])
        """
        return value_BT.flatten(-2).index_select(-1, self.place_N)

    def rows(self, value_B: Tensor) -> Tensor:
        """The value of each kept position's row, `[N]`."""
        return value_B.index_select(0, self.place_N // max(self.mask_BT.shape[1], 1))

    def outputs(self, output_BTX: Tensor) -> Tensor:
        """What a model gives at the kept positions, `[N, X]`.

        Args:
            output_BTX: may have more positions than the mask, as the last one of a text predicts nothing.
        """
        width = max(self.mask_BT.shape[1], 1)
        place_N = self.place_N + self.place_N // width * (output_BTX.shape[1] - self.mask_BT.shape[1])
        return output_BTX.flatten(0, 1).index_select(0, place_N)

    def spread(self, value_N: Tensor, fill: float = torch.nan) -> Tensor:
        """Values of the kept positions at their places, `[B, T]`, and something else at all others."""
        whole = torch.full((self.mask_BT.numel(),), fill, dtype=value_N.dtype, device=value_N.device)
        return whole.index_copy(0, self.place_N, value_N).view_as(self.mask_BT)
