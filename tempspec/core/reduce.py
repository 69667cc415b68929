"""From per-position values to a sum and a count (floor 1).

Axes: B batch, T positions.
"""

import torch
from torch import Tensor

__all__ = ["masked_sum_and_count", "or_one"]


def masked_sum_and_count(value_BT: Tensor, mask_BT: Tensor, weight_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The weighted sum of what the mask keeps, and the sum of the weights, both scalars in float32 or better.

    The same as indexing with the mask: what is left out may be NaN or infinite, has gradient 0, and a weight of 0
    leaves out as well. Their quotient is the mean; sums and counts of several batches or ranks add up to it exactly.

    Args:
        value_BT: values, `[B, T]` or any shape.
        mask_BT: bool, True for what counts, the same shape.
        weight_BT: non-negative weights that broadcast to the shape, for example `[B, 1]`; None weighs all alike.

    Raises:
        ValueError: the mask has another shape than the values, or is not boolean.

    >>> value, mask = torch.tensor([[1.0, 2.0, float("nan")]]), torch.tensor([[True, True, False]])
    >>> masked_sum_and_count(value, mask)
    (tensor(3.), tensor(2.))
    >>> masked_sum_and_count(value, mask, torch.tensor([[0.5, 2.0, 1.0]]))
    (tensor(4.5000), tensor(2.5000))
    """
    if mask_BT.shape != value_BT.shape or mask_BT.dtype != torch.bool:
        raise ValueError(
            f"expected a bool mask of the values' shape {list(value_BT.shape)}, got {mask_BT.dtype} of "
            f"{list(mask_BT.shape)}: index or expand it first"
        )
    dtype = torch.promote_types(value_BT.dtype, torch.float32)
    weight_BT = mask_BT.to(dtype) if weight_BT is None else mask_BT * weight_BT.to(dtype)
    # The operand is guarded, not the product: 0 * nan is nan.
    kept_BT = torch.where(weight_BT > 0, value_BT.to(dtype), 0.0)
    return (kept_BT * weight_BT).sum(), weight_BT.sum()


def or_one(count: Tensor) -> Tensor:
    """A divisor: the count, and 1 where nothing was counted.

    >>> or_one(torch.tensor([0.0, 0.5, 3.0]))
    tensor([1.0000, 0.5000, 3.0000])
    """
    return torch.where(count > 0, count, 1.0)
