"""Which files fit may continue from."""

from pathlib import Path

import torch

from tempspec.errors import UserError

__all__ = ["check_checkpoint"]


def check_checkpoint(path: str) -> None:
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
