"""An end for a process that a signal cannot reach (floor 5).

A handler of Python runs between two of Python's own instructions. A process that waits in a collective for one that is
gone executes none: SIGTERM would be noted and never acted on.
"""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Patience"]

_POKE = signal.SIGURG
"""Asks the main thread for a sign of life; it is ignored by default, and nothing here uses it otherwise."""

_END = b"\0"
"""The number of no signal."""


class Patience:
    """Ends the process some time after SIGINT or SIGTERM, unless its main thread still executes Python.

    Args:
        seconds: how long the main thread may be away, in one collective or one operation.
        end: what ends the process, given the exit code.
    """

    def __init__(self, seconds: float = 20.0, end: Callable[[int], object] = os._exit) -> None:
        self.seconds = seconds
        self.end = end
        self._alive = 0.0
        self._pipe: tuple[int, int] | None = None
        self._former: tuple[int, Any] = (-1, signal.SIG_DFL)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Watch from here on; in the main thread, which alone can."""
        if self._pipe is not None:
            return
        self._over.clear()
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        # The system's own handler writes there at once, whatever the main thread does.
        descriptor = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._former = (descriptor, signal.signal(_POKE, self._note))
        self._thread = threading.Thread(target=self._watch, args=(self._pipe[0],), name="patience", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer: the process is on its way out. The thread is gone then, before the interpreter is."""
        if self._pipe is None:
            return
        descriptor, handler = self._former
        signal.set_wakeup_fd(descriptor)
        signal.signal(_POKE, handler)
        self._over.set()
        os.write(self._pipe[1], _END)  # a process that was forked from this one may keep it open
        os.close(self._pipe[1])
        self._pipe = None
        if self._thread is not None:
            self._thread.join()

    def _note(self, *unused: object) -> None:
        self._alive = time.monotonic()

    def _watch(self, reading: int) -> None:
        """Wait for a signal, then for signs of life."""
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while (read := pipe.read(1)) not in (b"", _END):
                if ord(read) in (signal.SIGINT, signal.SIGTERM):
                    self._wait(ord(read))

    def _wait(self, number: int) -> None:
        self._alive = time.monotonic()
        while not self._over.wait(self.seconds / 20):
            if time.monotonic() - self._alive > self.seconds:
                text = f"error: no answer to {signal.Signals(number).name} for {self.seconds:g} s: this process waits "
                print(f"{text}for another that is gone, and ends at once", file=sys.stderr, flush=True)
                self.end(128 + number)
                return
            _thread.interrupt_main(_POKE)
