"""Linear layers on a handful of tokens, by the faster of two equal products (floor 3).

`x W^T` and `(W x^T)^T` are one product, but a BLAS library takes different kernels for them: on a CPU the first packs
the whole weight for a few rows of x and costs up to twice as much wherever the weight comes from memory. A verify pass
is made of such products.

Axes: M tokens, K inputs, N outputs.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ThinProducts", "thin_linear"]

MOST_TOKENS = 6
"""Tokens up to which the turned product is the faster one; a single token is a product of its own kind."""

LEAST_WEIGHTS = 1 << 16
"""A smaller weight stays in a core's cache, where there is nothing to gain."""


def thin_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """What `layer(x)` is, up to rounding: `[..., N]` from `[..., K]`, turned where the tokens are few.

    >>> layer = nn.Linear(3, 2)
    >>> x = torch.randn(2, 2, 3)
    >>> bool(torch.allclose(thin_linear(layer, x), layer(x), atol=1e-6))
    True
    """
    tokens = x.numel() // x.shape[-1]
    if not 1 < tokens <= MOST_TOKENS:
        return nn.functional.linear(x, layer.weight, layer.bias)
    x_KM = x.reshape(tokens, -1).t()
    if layer.bias is None:
        y_NM = torch.mm(layer.weight, x_KM)
    else:
        y_NM = torch.addmm(layer.bias[:, None], layer.weight, x_KM)
    return y_NM.t().contiguous().view(*x.shape[:-1], -1)


class ThinProducts:
    """A model whose large float32 linear layers on the CPU can be `thin_linear` for the length of a pass.

    Layers that something else has given a forward pass of its own (hooks of other libraries, adapters) are left alone.

    Args:
        model: any module; its layers are looked up now, their weights when used.
    """

    def __init__(self, model: nn.Module) -> None:
        self._forward_of: list[tuple[dict[str, Any], partial[Tensor]]] = [
            (vars(layer), partial(thin_linear, layer))
            for layer in model.modules()
            if type(layer) is nn.Linear and _gains(layer)
        ]

    def turned(self, tokens: int) -> AbstractContextManager[None]:
        """Within it a pass over so many tokens is faster, if it can be; outside the model is as it was."""
        return self._turned() if 1 < tokens <= MOST_TOKENS else nullcontext()

    @contextmanager
    def _turned(self) -> Iterator[None]:
        for attributes, forward in self._forward_of:
            attributes["forward"] = forward
        try:
            yield
        finally:
            for attributes, _ in self._forward_of:
                attributes.pop("forward", None)


def _gains(layer: nn.Linear) -> bool:
    """Whether the turned product may be faster, and nothing else has put itself in the layer's place."""
    weight = layer.weight
    large = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= LEAST_WEIGHTS
    return large and "forward" not in vars(layer)
