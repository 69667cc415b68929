"""A function of a chunk's logits, compiled for few shapes: chunks are padded to a power of two (floor 5).

Axes: N tokens of a chunk, U positions that they read, V vocabulary, of whatever else.
"""

import warnings
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tempspec.core.sparse import SparseLogits
from tempspec.modules.outputs import SharedLogits, TargetLogits, chunk_length

__all__ = ["FixedShapes", "fixed_length", "padded", "padded_target"]

Made = TypeVar("Made")

SHAPES = 32
"""Compiled variants at most, over all shapes and losses of a process."""


class FixedShapes:
    """`torch.compile` of a function, and which of its uses it could not compile.

    Args:
        function: of tensors and of what decides how they are used; it reads no value on the host.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: Callable[..., Any] | None = None
        self._refused: set[Hashable] = set()

    def takes(self, use: Hashable) -> bool:
        """Whether nothing is known against a use."""
        return use not in self._refused

    def __call__(self, use: Hashable, *arguments: object) -> Any:
        """The function's result; None where this use cannot be compiled, which one line says once."""
        try:
            return self._made()(*arguments)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._refused.add(use)
            reason = " ".join(str(error).split("\n")[:2]) or type(error).__name__
            warnings.warn(f"the loss runs uncompiled, as torch.compile says: {reason}", stacklevel=2)
            return None

    def _made(self) -> Callable[..., Any]:
        if self._compiled is None:
            limits = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, SHAPES)
            self._compiled = torch.compile(self._function, fullgraph=True, dynamic=False)
        return self._compiled


def fixed_length(tokens: int, vocabulary: int, device: str) -> int:
    """The tokens of a compiled chunk: a power of two, no more than the memory is for, and no more than are needed.

    >>> fixed_length(10_000, 128_256, "cuda"), fixed_length(300, 49_152, "cuda")
    (1024, 512)
    """
    most = 1 << (chunk_length(vocabulary, device).bit_length() - 1)
    return min(most, 1 << max(tokens - 1, 15).bit_length())


def padded(value: Tensor | None, length: int, axis: int, fill: float = 0.0) -> Tensor | None:
    """A tensor with entries added at one axis' end, up to a length; itself where it has them.

    >>> padded(torch.tensor([[1, 2]]), 4, 1)
    tensor([[1, 2, 0, 0]])
    """
    if value is None or value.shape[axis] == length:
        return value
    shape = list(value.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([value, value.new_full(shape, fill)], axis)


def padded_target(logits_NV: TargetLogits, length: int) -> TargetLogits:
    """The target's logits of a chunk with entries added; where tokens share them, to a power of two of positions.

    >>> padded_target(SharedLogits(torch.zeros(3, 7), torch.tensor([0, 1, 2, 2])), 8).logits_UV.shape
    torch.Size([4, 7])
    """
    if isinstance(logits_NV, SharedLogits):
        positions = 1 << max(len(logits_NV.logits_UV) - 1, 0).bit_length()
        return SharedLogits(_padded(logits_NV.logits_UV, positions), _padded(logits_NV.index_N, length))
    if isinstance(logits_NV, SparseLogits):
        return replace(
            logits_NV,
            token_NK=_padded(logits_NV.token_NK, length),
            logit_NK=_padded(logits_NV.logit_NK, length),
            logsum_NH=_padded(logits_NV.logsum_NH, length),
        )
    return _padded(logits_NV, length)


def _padded(value: Tensor, length: int) -> Tensor:
    found = padded(value, length, 0)
    assert found is not None
    return found
