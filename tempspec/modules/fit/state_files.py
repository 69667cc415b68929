"""Files with a target's states that other tools wrote, one for each text, read into one form (floor 5).

What they hold, beside the mask of their own loss, which is not looked at:

    vLLM, speculators   *.safetensors   token_ids [L]   hidden_states [L, S, H]
    speculators < 0.5   *.pt            input_ids [L]   hidden_states: S tensors [L, H]
    SpecForge           *.ckpt, .gz     input_ids [L]   aux_hidden_state [1, L, (S - 1) H], hidden_state [1, L, H]

Axes: L tokens of a text, S states, H hidden, W numbers of a token in one tensor.
"""

import gzip
import io
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tempspec.errors import UserError

__all__ = ["state_files", "states_of", "tokens_of"]

_STATES, _TOKENS = "hidden_states", "token_ids"
_OLD_TOKENS, _LAST, _OTHERS = "input_ids", "hidden_state", "aux_hidden_state"
_ENDINGS = (".safetensors", ".pt", ".ckpt", ".ckpt.gz")
_BROKEN = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zlib.error)


class _Written(NamedTuple):
    """What a file holds, its tensors untouched.

    Attributes:
        token_L: the text.
        parts: tensors `[L, W]` or `[1, L, W]`, whose last axes make up the states.
    """

    token_L: Any
    parts: Sequence[Tensor]


def state_files(folder: Path) -> list[Path]:
    """All files of a folder and those below it that may hold states."""
    return sorted(file for file in folder.rglob("*") if file.name.endswith(_ENDINGS))


def tokens_of(file: Path, states: int, width: int) -> Any:
    """A file's token ids, int64 `[L]`, once its states have the shape that they should have.

    Args:
        file: one of `state_files`.
        states: S.
        width: H.

    Raises:
        UserError: it is torn, is none of the layouts, or has another shape.
    """
    if file.suffix == ".safetensors":
        return _safe_tokens(file, states, width)
    token_L, parts = _pickled(file)
    token_L = torch.as_tensor(token_L, dtype=torch.int64).reshape(-1)
    lengths, numbers = {part.shape[-2] for part in parts}, sum(part.shape[-1] for part in parts)
    if lengths != {len(token_L)} or numbers != states * width:
        raise _other_shape(file, [len(token_L), states, width], f"{sorted(lengths)} tokens of {numbers} numbers")
    return token_L.numpy()


def states_of(file: Path, states: int) -> Tensor:
    """A file's states, `[L, S, H]`.

    Args:
        file: one that `tokens_of` has read.
        states: S.
    """
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(_STATES)
    parts = [part.reshape(-1, part.shape[-1]) for part in _pickled(file).parts]
    return torch.cat(parts, -1).unflatten(-1, (states, -1))


def _safe_tokens(file: Path, states: int, width: int) -> Any:
    try:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
            if not {_STATES, _TOKENS} <= names:
                raise UserError(f"{file} must hold {_STATES} and {_TOKENS}, got {', '.join(sorted(names))}: remove it")
            token_L, shape = opened.get_tensor(_TOKENS), list(opened.get_slice(_STATES).get_shape())
    except SafetensorError as error:
        raise _unreadable(file, error) from error
    if shape != (expected := [len(token_L), states, width]):
        raise _other_shape(file, expected, str(shape))
    return token_L.numpy()


def _pickled(file: Path) -> _Written:
    """A file of torch's, of which nothing is run; one that is not compressed stays on the disk until it is needed."""
    try:
        if file.suffix == ".gz":
            held = torch.load(io.BytesIO(gzip.decompress(file.read_bytes())), map_location="cpu", weights_only=True)
        else:
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except _BROKEN as error:
        raise _unreadable(file, error) from error
    held = held if isinstance(held, dict) else {}
    tokens, last, others, listed = (held.get(name) for name in (_OLD_TOKENS, _LAST, _OTHERS, _STATES))
    if tokens is not None and isinstance(listed, list | tuple) and listed:
        return _Written(tokens, listed)
    if tokens is not None and last is not None and others is not None:
        return _Written(tokens, [others, last])
    if tokens is not None and last is not None:
        raise UserError(
            f"{file} holds only the last state, as EAGLE and EAGLE-2 need it: let SpecForge write it with "
            "--enable-aux-hidden-states"
        )
    raise UserError(
        f"{file} must hold {_OLD_TOKENS} with {_STATES}, or with {_OTHERS} and {_LAST}, got "
        f"{', '.join(sorted(map(str, held))) or 'none of them'}: remove it"
    )


def _unreadable(file: Path, error: Exception) -> UserError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return UserError(f"cannot read {file}: {reason}; let the engine write it again")


def _other_shape(file: Path, expected: list[int], got: str) -> UserError:
    return UserError(
        f"the states of {file} must be [tokens, engine_states, the target's width] = {expected}, got {got}: name the "
        "states that the engine was given, and its target"
    )
