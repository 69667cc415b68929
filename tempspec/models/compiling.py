"""Forward passes of static shapes, compiled: `torch.compile` on the CPU, CUDA graphs on a GPU (floor 3)."""

import os
import shutil
import warnings
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from tempspec.errors import UserError

Pass = Callable[..., Tensor]
"""`(token_RN, start_R, view, keep, visible_RNN=None) -> logits`; reads no value on the host."""

Compile = bool | Literal["auto", "round"]
"""Whether forward passes are compiled; `auto` is on a GPU, where nothing but the model can forbid it.

`round` records whole rounds on a GPU, instead of their passes.
"""

Replay = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A recorded pass: `(token_RN, start_R, visible_RNN) -> logits` for the shapes that it was recorded with."""

Recorder = Callable[[Pass, Tensor, Tensor, int, int, Tensor | None], Replay]
"""Makes a recording of a pass from the first `(token_RN, start_R, view, keep, visible_RNN)` of a shape."""

Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Makes a recording of what works on tensors at fixed places: it gives the result, at a fixed place, too."""

SHAPES = 32
"""Compiled or recorded variants that one model may have: widths times views."""


def compiled(forward: Pass, device: torch.device) -> Pass:
    """A faster `forward` for the shapes that it meets again and again; each is compiled when first met.

    Without a C++ compiler, which `torch.compile` needs on the CPU, it warns once and returns `forward` itself.
    """
    if device.type == "cuda":
        return Recorded(forward, record_pass)
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


class Recorded:
    """Records a forward pass once for each shape and replays it: no Python and one launch for all its kernels.

    What cannot be recorded runs as it is: a shape beyond the first `most`, and every shape of a model whose first
    recording failed. One line says why.

    Args:
        forward: the pass.
        record: makes a recording of it.
        most: recordings at most; each holds memory.
    """

    def __init__(self, forward: Pass, record: Recorder, most: int = SHAPES) -> None:
        self._forward = forward
        self._record = record
        self._most = most
        self._recorded: dict[Hashable, Replay] = {}
        self._full = False

    def __call__(
        self, token_RN: Tensor, start_R: Tensor, view: int, keep: int, visible_RNN: Tensor | None = None
    ) -> Tensor:
        """See `Pass`; the logits of a recording are its own and are kept until the next pass."""
        given = token_RN, start_R, view, keep, visible_RNN
        shape = (token_RN.shape, view, keep, None if visible_RNN is None else visible_RNN.shape)
        replay = self._recorded.get(shape)
        if replay is None and not self._full:
            replay = self._new(*given)
        if replay is None:
            return self._forward(*given)
        self._recorded[shape] = replay
        return replay(token_RN, start_R, visible_RNN)

    def _new(
        self, token_RN: Tensor, start_R: Tensor, view: int, keep: int, visible_RNN: Tensor | None
    ) -> Replay | None:
        """A recording; None where there is to be none, now and later."""
        if len(self._recorded) < self._most:
            try:
                return self._record(self._forward, token_RN, start_R, view, keep, visible_RNN)
            except RuntimeError as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
        else:
            reason = f"{self._most} shapes are recorded, which is the most"
        self._full = True
        warnings.warn(f"compile: forward passes of other shapes run eagerly, as {reason}", stacklevel=4)
        return None


@cache
def _pool() -> Any:
    """The memory that all recordings share: they are replayed one after the other."""
    return torch.cuda.graph_pool_handle()


def recorder(device: torch.device) -> Record:
    """What records whole rounds.

    Raises:
        UserError: there is no GPU.
    """
    if device.type != "cuda":
        expected = f"expected models on a GPU, got them on {device.type}"
        raise UserError(f"compile: round records CUDA graphs, {expected}: set compile to auto")
    return record_graph


def record_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A CUDA graph of what works on tensors at fixed places. Graphs of whole rounds were never run on a GPU.

    Raises:
        RuntimeError: it does what no graph can hold, such as reading a value on the host.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate their workspaces in a first, unrecorded run
        first = run()
    torch.cuda.current_stream().wait_stream(side)
    # Not of the shared memory, in which another recording may leave anything between two replays.
    made = torch.empty_like(first)
    del first
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        made.copy_(run())

    def replay() -> Tensor:
        graph.replay()
        return made

    return replay


def record_pass(
    forward: Pass, token_RN: Tensor, start_R: Tensor, view: int, keep: int, visible_RNN: Tensor | None
) -> Replay:
    """A CUDA graph of a pass.

    Raises:
        RuntimeError: see `record_graph`.
    """
    own_token_RN, own_start_R = token_RN.clone(), start_R.clone()
    own_visible_RNN = None if visible_RNN is None else visible_RNN.clone()
    graph = record_graph(lambda: forward(own_token_RN, own_start_R, view, keep, own_visible_RNN))

    def replay(token_RN: Tensor, start_R: Tensor, visible_RNN: Tensor | None) -> Tensor:
        own_token_RN.copy_(token_RN)
        own_start_R.copy_(start_R)
        if own_visible_RNN is not None and visible_RNN is not None:
            own_visible_RNN.copy_(visible_RNN)
        return graph()

    return replay
