"""Stable digests of contents: files, folders, plain values, token ids; the same on every machine, always (floor 5)."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def digest_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(path: str | Path, pattern: str = "**/*") -> str:
    """SHA-256 over the relative names and the bytes of a folder's files, independent of the order on disk.

    Args:
        path: the folder.
        pattern: which files count, a glob below the folder; `*.safetensors` gives a digest of weights alone.
    """
    root = Path(path)
    names = sorted(file.relative_to(root).as_posix() for file in root.glob(pattern) if file.is_file())
    return digest_value([(name, digest_file(root / name)) for name in names])


def digest_path(path: str | Path) -> str:
    """The digest of a file or of a whole folder."""
    return digest_folder(path) if Path(path).is_dir() else digest_file(path)


def digest_value(value: Any) -> str:
    """SHA-256 of a JSON-able value, hexadecimal; the order of keys does not matter.

    >>> digest_value({"a": 1, "b": 2}) == digest_value({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def key_of_ids(ids: Iterable[int]) -> int:
    """A 63-bit key of a sequence of token ids: equal sequences share it, and others do not in practice.

    >>> key_of_ids([1, 2]) == key_of_ids((1, 2)), key_of_ids([1, 2]) == key_of_ids([2, 1])
    (True, False)
    """
    return _top_bits(np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype="<i8").tobytes(), 63)


def unit_interval(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed alone, uniform over texts.

    >>> unit_interval("a", 0) == unit_interval("a", 0), 0 <= unit_interval("a", 1) < 1
    (True, True)
    """
    return _top_bits(f"{seed}\n{text}".encode("utf-8", "surrogatepass"), 53) * 2.0**-53


def _top_bits(data: bytes, bits: int) -> int:
    """The leading bits of a 64-bit BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> (64 - bits)
