"""Time spent in a model's forward passes, on the CPU or on a CUDA stream (floor 3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


class Stopwatch:
    """Adds up what runs inside `running`.

    On CUDA it records events, which cost the host nothing: the time is the stream's own, read once it has passed.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._standing = False
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs inside."""
        if self._standing:
            yield
        elif self._cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((first, last))
        else:
            began = perf_counter()
            yield
            self._seconds += perf_counter() - began

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Count nothing of what runs inside."""
        self._standing = True
        try:
            yield
        finally:
            self._standing = False

    def take(self) -> float:
        """Seconds since the last `take`; on CUDA it waits for the counted work to end."""
        if self._events:
            self._events[-1][1].synchronize()
        spent = self._seconds + sum(first.elapsed_time(last) for first, last in self._events) / 1e3
        self._seconds = 0.0
        self._events.clear()
        return spent
