"""Which weights a folder holds, and which tokenizer one has (floor 3)."""

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache

if TYPE_CHECKING:  # it takes seconds to import, and a report asks for digests alone
    from transformers import PreTrainedTokenizerBase

__all__ = ["file_digest", "has_weights", "of_earlier_version", "tokenizer_digest", "weights_digest"]

_WEIGHTS = ("*.safetensors", "*.gguf")
"""Files that hold weights; a draft's conditioning is one of them."""


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A digest of what a tokenizer does: its serialised rules or vocabulary, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([type(tokenizer).__name__, rules, special, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def has_weights(path: str) -> bool:
    """Whether a model's weights lie in a folder here: a hub name has none, nor has a folder of a tokenizer."""
    place = Path(path).expanduser()
    return place.is_file() or bool(_weight_files(place))


def weights_digest(path: str | Path, revision: str | None = None) -> str:
    """A digest of a model folder's config and of every byte of its weight files; a copy elsewhere has the same.

    Of a GGUF file, which has its configuration in it, it is that of the file, whether that or its folder is named.

    Args:
        path: a `save_pretrained` folder, a file of weights, or a hub name, which is its own with the commit that the
            local cache holds.
        revision: a hub model's branch, tag or commit.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return file_digest(place)
    if not place.is_dir():
        return _hub_identity(str(path), revision)
    files = _weight_files(place)
    if len(files) == 1 and files[0].suffix == ".gguf":  # the folder is another name of its file
        return file_digest(files[0])
    digest = hashlib.sha256()
    config = place / "config.json"
    for file in ([config] if config.is_file() else []) + files:
        digest.update(f"{file.name} {file_digest(file)} ".encode())
    return digest.hexdigest()[:32]


def file_digest(path: str | Path) -> str:
    """A digest of all bytes of a file, read once in a process: some seconds for tens of gigabytes."""
    path = Path(path)
    held = path.stat()
    return _file_digest(path, held.st_size, held.st_mtime_ns, held.st_ino)


def of_earlier_version(digest: str) -> bool:
    """Whether a text begins with a digest as earlier versions made them, of both ends of each weight file.

    >>> of_earlier_version("0123456789abcdef ModelOptions()"), of_earlier_version("0123456789abcdef" * 2)
    (True, False)
    """
    return re.fullmatch(r"[0-9a-f]{16}( .*)?", digest, re.DOTALL) is not None


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
    return [file for file in found if not file.name.startswith("mmproj")]  # a vision part, which is not read


def _hub_identity(name: str, revision: str | None) -> str:
    """The name, with the commit of it that is cached: a branch may move."""
    repository, _, file = name.partition(":")  # hub/name:file.gguf
    try:
        held = try_to_load_from_cache(repository, file or "config.json", revision=revision)
    except ValueError:  # no name that a hub could have
        held = None
    return f"{name} {Path(held).parent.name}" if isinstance(held, str) else name


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """Of a file as it is now; size, time and inode say when the remembered one no longer holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
