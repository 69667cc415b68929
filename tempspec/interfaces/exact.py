"""Numbers that keep their precision inside a model of another one (floor 2)."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["Exact"]


class Exact(torch.nn.Module):
    """A module whose parameters and buffers follow its holder's device and never its dtype.

    Lightning moves a whole module to bfloat16 under `bf16-true`. A learned temperature would be rounded there, and a
    sum, or a share that grows by small steps, would stop growing.

    >>> class Count(Exact):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.register_buffer("tokens", torch.tensor(257.0, dtype=torch.float32))
    >>> torch.nn.Sequential(Count()).to(torch.bfloat16)[0].tokens
    tensor(257.)
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *more: Any) -> Self:
        """Move every tensor to where `fn` would take it, as it is."""
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), *more)
        return self
