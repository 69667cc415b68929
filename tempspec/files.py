"""Files that are there whole or not at all (floor 0: standard library only)."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tempspec.errors import UserError

__all__ = ["claim", "replacing", "write_atomically"]


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


def write_atomically(path: Path, content: bytes | str) -> None:
    """Put the content where the path points, all of it or nothing; text is UTF-8, folders are made."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep every other process that claims the folder out of it; the system gives it back however this one ends.

    No file is left. Where the file system knows no locks nobody is kept out.

    Args:
        folder: a folder that is there.

    Raises:
        UserError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(
            f"another tempspec is at work in {folder}: wait for it, or choose another --run folder"
        ) from error
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(handle)
