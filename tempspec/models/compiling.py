"""Forward passes of static shapes, compiled: `torch.compile` on the CPU, CUDA graphs on a GPU (floor 3)."""

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Pass = Callable[..., Tensor]
"""`(token_RN, start_R, view, keep) -> logits`; reads no value on the host."""

SHAPES = 32
"""Compiled variants that one model may have: widths times views."""


def compiled(forward: Pass, device: torch.device) -> Pass:
    """A faster `forward` for the shapes that it meets again and again; each is compiled when first met.

    Without a C++ compiler, which `torch.compile` needs on the CPU, it warns once and returns `forward` itself.
    """
    if device.type == "cuda":
        return CudaGraphs(forward)
    if not has_cpp_compiler():
        warnings.warn(
            "compile: expected a C++ compiler (the variable CXX, g++ or clang++), found none; "
            "forward passes run uncompiled: install one, or leave compile out",
            stacklevel=2,
        )
        return forward
    return Compiled(forward)


def has_cpp_compiler() -> bool:
    """Whether a C++ compiler is on the path."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)


class Compiled:
    """`torch.compile` of a forward pass, without the guards of a transformers model once a shape has been met.

    Those guards cost more than half a millisecond a call. What they watch, the model's structure and mode, does not
    change while an engine runs; weights are inputs of the compiled code and may.
    """

    def __init__(self, forward: Pass) -> None:
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, SHAPES)
        self._compiled = torch.compile(forward, dynamic=False)
        self._met: set[Any] = set()

    def __call__(self, token_RN: Tensor, start_R: Tensor, view: int, keep: int) -> Tensor:
        """See `Pass`."""
        shape = (token_RN.shape, view, keep)
        if shape not in self._met:
            self._met.add(shape)
            return self._compiled(token_RN, start_R, view, keep)
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            return self._compiled(token_RN, start_R, view, keep)


class CudaGraphs:
    """Records a forward pass once for each shape and replays it: no Python and one launch for all its kernels.

    Inputs are copied to the recording's own; the logits are its own too and are kept until the next pass.
    """

    def __init__(self, forward: Pass) -> None:
        self._forward = forward
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}

    def __call__(self, token_RN: Tensor, start_R: Tensor, view: int, keep: int) -> Tensor:
        """See `Pass`."""
        shape = (token_RN.shape, view, keep)
        if shape not in self._recorded:
            self._recorded[shape] = self._record(token_RN.clone(), start_R.clone(), view, keep)
        graph, own_token_RN, own_start_R, logits = self._recorded[shape]
        own_token_RN.copy_(token_RN)
        own_start_R.copy_(start_R)
        graph.replay()
        return logits

    def _record(
        self, token_RN: Tensor, start_R: Tensor, view: int, keep: int
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries allocate their workspaces in a first, unrecorded pass
            self._forward(token_RN, start_R, view, keep)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._forward(token_RN, start_R, view, keep)
        return graph, token_RN, start_R, logits
