"""Which weights a folder holds, and which tokenizer one has (floor 3)."""

import hashlib
import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tempspec.models.hub import weight_files

EDGE = 1 << 20
"""Bytes read from each end of a file: enough to tell two trained checkpoints apart, whatever their size."""


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of what a tokenizer does: its serialised rules or vocabulary, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([type(tokenizer).__name__, rules, special, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def has_weights(path: str) -> bool:
    """Whether a model's weights lie in a folder here: a hub name has none, nor has a folder of a tokenizer."""
    return bool(weight_files(path))


def weights_digest(path: str) -> str:
    """A digest of a model folder's config and of the size and both ends of its weight files; a hub name is its own.

    Args:
        path: a `save_pretrained` folder, a GGUF file or a folder with one, or a hub name.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        return path
    config = folder / "config.json"  # a GGUF file has its own in it
    digest = hashlib.sha256()
    for file in sorted([*weight_files(path), *([config] if config.is_file() else [])]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(EDGE))
            handle.seek(max(0, size - EDGE))
            digest.update(handle.read(EDGE))
    return digest.hexdigest()[:16]
