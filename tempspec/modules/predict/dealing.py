"""Work and news among the processes of a run, without a collective: nobody waits for the slowest (floor 5).

The processes share a `torch.distributed.TCPStore` of the first one. What is to be done is numbered, and whoever is free
takes the next number.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from tempspec.errors import UserError

__all__ = ["Dealer"]

PAUSE = 0.05
"""Seconds between two looks while a process waits for the others."""

SILENCE = 1800.0
"""Seconds without a sign of any other process after which one that waits gives up; torch's own default."""

LEAVING = 10.0
"""Seconds that the first process, which holds what all share, waits on its way out for others to hear of it."""

FAILED = 1
"""What `stop_code` gives where another process ended by an error."""

_GONE = "the first process of the run is gone: see its message"


class Dealer:
    """Numbers that are counted over all processes, and a word to stop; every process makes one, at the same place."""

    def __init__(self) -> None:
        self._store = _shared_store()
        self._own: Counter[str] = Counter()
        self._code = 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self._store is None

    def add(self, name: str, amount: int) -> int:
        """Add to a number of all processes; returns its new value.

        Raises:
            UserError: the first process is gone.
        """
        if self._store is None:
            self._own[name] += amount
            return self._own[name]
        try:
            return int(self._store.add(name, amount))
        except RuntimeError as error:
            raise UserError(_GONE) from error

    def take(self, name: str) -> int:
        """The next number, from 0, that no process has taken under this name."""
        return self.add(name, 1) - 1

    def tell(self, code: int) -> None:
        """Tell all processes to stop with an exit code."""
        self._code = self._code or code
        self.add(f"stop {code}", 1)

    def beat(self) -> None:
        """Say that this process is at work."""
        self.add("beats", 1)

    def stop_code(self) -> int:
        """The exit code that some process was told to stop with; 0 for none."""
        if not self._code and self._store is not None:
            self._code = next((code for code in (FAILED, 130, 143) if self.add(f"stop {code}", 0)), 0)
        return self._code

    def meet(self, stop: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """Wait until all processes are here, or told to stop.

        Args:
            stop: asked again and again.
            clock: seconds.

        Raises:
            UserError: none of the others gives a sign any more.
        """
        if self._store is None:
            return
        arrived, world = self.add("arrived", 1), torch.distributed.get_world_size()
        known, heard = -1, clock()
        while arrived < world and not stop():
            time.sleep(PAUSE)
            arrived, beats = self.add("arrived", 0), self.add("beats", 0)
            if beats != known:
                known, heard = beats, clock()
            elif clock() - heard > SILENCE:
                raise UserError(f"{world - arrived} of {world} processes are silent: see their messages")

    def settle(self, code: int) -> int:
        """Whether all stop or all continue: the first that asks says so for all, and this process' own code is no more.

        One that was told to stop while the last of the others arrived would leave, and they would wait for it.

        Args:
            code: the exit code that this process would stop with; 0 to continue.

        Raises:
            UserError: the first process is gone.
        """
        if self._store is None:
            return code
        try:
            return int(self._store.compare_set("settled", "", str(code)))
        except RuntimeError as error:
            raise UserError(_GONE) from error

    def leave(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Say that this process has heard that all stop; the first one waits a while until all have.

        Args:
            clock: seconds.
        """
        if self._store is None:
            return
        left, since = self.add("left", 1), clock()
        while torch.distributed.get_rank() == 0 and left < torch.distributed.get_world_size():
            if clock() - since > LEAVING:
                return
            time.sleep(PAUSE)
            left = self.add("left", 0)


def _shared_store() -> Any:
    """A store that all processes see; None for one process alone."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return None
    host, first = os.environ.get("MASTER_ADDR", "127.0.0.1"), torch.distributed.get_rank() == 0
    patience = timedelta(seconds=300)
    make: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]  # documented, but without a stub
    store = make(host, 0, None, True, patience, wait_for_workers=False) if first else None
    port = [0 if store is None else store.port]
    torch.distributed.broadcast_object_list(port)
    return store or make(host, port[0], None, False, patience, wait_for_workers=False)
