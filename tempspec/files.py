"""Files that are there whole or not at all, and folders held by one run at a time (floor 0: standard library only)."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where nothing is held
    fcntl = None  # type: ignore[assignment]

from tempspec.errors import UserError

__all__ = ["let_go", "replacing", "replacing_folder", "stage_folder", "take_hold", "write_atomically"]

_LOCK = ".lock"
_held: dict[Path, int] = {}
"""The lock files that this process holds, with their open descriptors."""


def stage_folder(trainer: Any) -> Path:
    """Where a stage of a run keeps its files: a folder named after it in the trainer's `default_root_dir`.

    The command line's trainer has its own `stage_folder`.
    """
    own = getattr(trainer, "stage_folder", None)
    return Path(trainer.default_root_dir) / trainer.state.fn.value if own is None else Path(own)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; what is there in the end is moved to `path` in one step.

    Whatever interrupts the writing, `path` keeps what it held, and nobody reads half of the new content.

    Args:
        path: the file to make or replace; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write to, which takes its place in the last moment.

    An interruption leaves the old or the new one, whole.

    Args:
        folder: the folder to make or replace.
    """
    folder = folder.resolve()
    fresh, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    yield fresh
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Put the content where the path points, all of it or nothing; text is UTF-8, folders are made."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def take_hold(folder: Path) -> None:
    """Hold a folder for this process alone, until `let_go` or the process ends; twice in one process is once.

    The folder gets a file `.lock` that names the process. Where the file system knows no locks, nothing is held.

    Args:
        folder: of a run's stage; it exists.

    Raises:
        UserError: another process holds it.
    """
    path = folder.resolve() / _LOCK
    if path in _held or fcntl is None:
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace") or "a process"
            os.close(descriptor)
            raise UserError(
                f"{folder} is in use by another run ({holder}): wait until it has ended, or choose another --run folder"
            ) from error
        except OSError:
            os.close(descriptor)
            return
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # who held it has just let go, and the file with it
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _held[path] = descriptor


def let_go(folder: Path) -> None:
    """Let other processes hold the folder again; nothing where this process does not hold it."""
    path = folder.resolve() / _LOCK
    descriptor = _held.pop(path, None)
    if descriptor is not None:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one that the path names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
