"""Which weights a folder holds, cheaply (floor 3)."""

import hashlib
from pathlib import Path

EDGE = 1 << 20
"""Bytes read from each end of a file: enough to tell two trained checkpoints apart, whatever their size."""


def weights_digest(path: str) -> str:
    """A digest of a model folder's config and of the size and both ends of its weight files; a hub name is its own.

    Args:
        path: a `save_pretrained` folder or a hub name.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(EDGE))
            handle.seek(max(0, size - EDGE))
            digest.update(handle.read(EDGE))
    return digest.hexdigest()[:16]
