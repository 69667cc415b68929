"""How a model's weights are quantised, in words: for records, cards and one line on the screen (floor 3)."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from tempspec.models.hub import GGUF, split_name, weight_files

__all__ = ["quantised"]

_PLAIN = ("F32", "F16", "BF16")


def quantised(path: str, asked: Mapping[str, Any] | None = None, revision: str | None = None) -> str | None:
    """How a model's weights are quantised; None for ordinary weights. Looks at files alone, never at the network.

    Args:
        path: as `load_model` takes it.
        asked: what it is quantised by while it is loaded, if so.
        revision: branch, tag or commit on the hub.
    """
    if asked is not None:
        return f"quantised by {_method(asked)} when it was loaded"
    file, config = _files(path, revision)
    if file is not None:
        kind = _kind(file)
        return None if kind in _PLAIN else f"dequantised from {kind} of {file.name}"
    try:
        own = json.loads(config.read_text(encoding="utf-8")).get("quantization_config") if config else None
    except (OSError, ValueError):
        return None
    return f"quantised by {_method(own)} in its folder" if own else None


def _method(config: Mapping[str, Any]) -> str:
    bits = next((f", {bits} bits" for bits in (4, 8) if config.get(f"load_in_{bits}bit")), "")
    return f"{config.get('quant_method', 'bitsandbytes')}{bits}"


def _files(path: str, revision: str | None) -> tuple[Path | None, Path | None]:
    """The GGUF file and the config.json of a path, of those that lie here."""
    files = weight_files(path)
    if files and files[0].suffix == GGUF:
        return files[0], None
    folder = Path(path).expanduser()
    if folder.is_dir():
        return None, folder / "config.json"
    name, file = split_name(path)
    try:
        cached = try_to_load_from_cache(name, file or "config.json", revision=revision)
    except ValueError:  # no hub name at all
        return None, None
    held = Path(cached) if isinstance(cached, str) else None
    return (held or Path(file), None) if file else (None, held)


@lru_cache
def _kind(file: Path) -> str:
    """The type of a GGUF file's weights, such as Q4_K_M, by its own account; `GGUF` where it cannot be read."""
    try:
        from gguf import GGUFReader, LlamaFileType

        named = GGUFReader(file).fields["general.file_type"].contents()
        return LlamaFileType(named).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (ImportError, OSError, ValueError, KeyError):
        return "GGUF"
