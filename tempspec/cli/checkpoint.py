"""The file that a stage continues from, or whose weights it takes (floor 6)."""

from pathlib import Path

import torch

from tempspec.errors import UserError

__all__ = ["checkpoint_of"]


def checkpoint_of(run: str, path: str | None) -> str | None:
    """The checkpoint that `ckpt_path` names; None for none.

    Args:
        run: the run's folder.
        path: a file; `last` for the run's own, or `auto` for that or, where there is none yet, nothing.

    Raises:
        UserError: no such file, or not a checkpoint.
    """
    last = Path(run) / "fit" / "checkpoints" / "last.ckpt"
    if path is None or (path == "auto" and not last.is_file()):
        return None
    if path == "last" and not last.is_file():
        raise UserError(f"ckpt_path is last, but there is no {last}; leave ckpt_path out to start from scratch")
    found = str(last) if path in ("auto", "last") else path
    _check(found)
    return found


def _check(path: str) -> None:
    """Refuse what is not a local Lightning checkpoint, before anything is built.

    Raises:
        UserError: saying which.
    """
    if "://" in path:
        raise UserError(f"ckpt_path must be a local file, got {path}: download it first (checkpoints can carry code)")
    if not Path(path).is_file():
        raise UserError(f"ckpt_path must be a checkpoint file or last, got {path}: there is no such file")
    try:
        content = torch.load(path, weights_only=True, map_location="meta", mmap=True)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise UserError(f"{path} is not a checkpoint, or holds more than weights and numbers") from error
    wanted = ("state_dict", "pytorch-lightning_version")
    missing = [name for name in wanted if not isinstance(content, dict) or name not in content]
    if missing:
        raise UserError(f"{path} is not a checkpoint of fit: it has no {missing[0]}")
    if not isinstance(content["state_dict"], dict):
        raise UserError(f"{path} is not a checkpoint of fit: its state_dict holds no weights")
