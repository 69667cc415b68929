"""Steps of a longer job: each is finished once, whatever interrupts it (floor 6).

A step whose command, configuration and predecessors are unchanged is not run again; an interrupted one resumes with
what it has. Nothing here knows what a step does. Nothing outside the standard library: a job begins at once.
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tempspec import __version__
from tempspec.files import write_atomically

__all__ = ["Step", "finished_seconds", "remove", "run_steps"]


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: names its marker.
        title: what it does, for the screen.
        command: the command line that is shown.
        run: does it.
        leaves: what it writes; these are removed when the step must begin anew.
        depends: what else its outcome depends on: configuration texts.
        asks: texts that say how much is wanted.
        alone: it depends on no step before it.
        keeps: run again with what it left where nothing but `asks` has changed; otherwise it begins anew.
    """

    name: str
    title: str
    command: str
    run: Callable[[], None]
    leaves: tuple[Path, ...]
    depends: tuple[str, ...] = field(default=())
    asks: tuple[str, ...] = field(default=())
    alone: bool = False
    keeps: bool = False


class _Digests(NamedTuple):
    """What a step's outcome depends on, its predecessors included.

    Attributes:
        base: all but how much is wanted.
        whole: all of it.
    """

    base: str
    whole: str


def run_steps(steps: Sequence[Step], markers: Path) -> None:
    """Run what is not finished; a second process with the same markers waits for the first.

    Args:
        steps: in order; each depends on all before it, or on none.
        markers: the folder that remembers what was begun and finished.

    Raises:
        UserError: a step failed.
    """
    markers.mkdir(parents=True, exist_ok=True)
    with _alone(markers):
        for number, (step, digest) in enumerate(zip(steps, _digests(steps), strict=True), 1):
            print(f"\n[{number}/{len(steps)}] {step.title}\n    {step.command}", flush=True)
            _run(step, digest, markers / f"{step.name}.json")


def finished_seconds(steps: Sequence[Step], markers: Path) -> dict[str, float]:
    """The steps that are finished as they are described, and how long each took."""
    held = {step.name: _held(markers / f"{step.name}.json") for step in steps}
    return {
        step.name: held[step.name].get("seconds", 0.0)
        for step, digest in zip(steps, _digests(steps), strict=True)
        if _state(step, held[step.name], digest) == "finished" and all(path.exists() for path in step.leaves)
    }


def _digests(steps: Sequence[Step]) -> Iterator[_Digests]:
    first = base = whole = _joined(__version__)
    for step in steps:
        base, whole = (first, first) if step.alone else (base, whole)
        base = _joined(base, step.command, *step.depends)
        whole = _joined(whole, base, *step.asks) if step.asks or whole != base else base
        yield _Digests(base, whole)


def _joined(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _run(step: Step, digest: _Digests, marker: Path) -> None:
    held = _held(marker)
    state = _state(step, held, digest)
    if state == "finished" and all(path.exists() for path in step.leaves):
        print("    finished before: reused", flush=True)
        return
    if state == "new":
        remove(step.leaves)
        held = {}
    now = {"digest": digest.whole, "base": digest.base}
    write_atomically(marker, json.dumps(held | now | {"finished": False}))
    began = time.monotonic()
    step.run()
    seconds = round(held.get("seconds", 0.0) + time.monotonic() - began, 2)
    write_atomically(marker, json.dumps(now | {"finished": True, "seconds": seconds}))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system gives it back when the process ends, however it ends."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _held(marker: Path) -> dict[str, Any]:
    """What a marker holds; nothing where there is none, or a broken one."""
    try:
        held = json.loads(marker.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _state(step: Step, held: dict[str, Any], digest: _Digests) -> str:
    """`finished`, `begun` or `new` (never begun, or with a configuration that what it left is of no use to)."""
    if held.get("digest") != digest.whole:
        return "begun" if step.keeps and held.get("base") == digest.base else "new"
    return "finished" if held.get("finished") else "begun"


def remove(paths: Sequence[Path]) -> None:
    """Remove a step's former outcome."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
