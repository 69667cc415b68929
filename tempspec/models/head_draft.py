"""A head as the draft of a pair: made for a target or read from a folder, and what a new one may draft (floor 3).

Axes: V the target's vocabulary, R the head's own.
"""

from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.errors import UserError
from tempspec.files import replacing_folder
from tempspec.interfaces import DraftHead, HeadModel
from tempspec.models.conditioning import FILE, load_conditioning, ordinary, save_conditioning
from tempspec.models.eagle3.files import is_head_folder
from tempspec.models.loading import cast_weights, weights_of
from tempspec.models.tapping import head_target

__all__ = [
    "DraftModel",
    "cast_draft",
    "check_head_folder",
    "head_state",
    "make_head",
    "parameters",
    "refuse_head_folder",
    "save_head",
    "take_up_head",
]


DraftModel: TypeAlias = PreTrainedModel | HeadModel
"""What drafts: a language model, or a head on the target's hidden states."""


_IDS = "draft_ids"
"""Where a checkpoint keeps the target's ids that a head drafts."""


def make_head(head: DraftHead, target: PreTrainedModel, folder: str | None, ids_R: Tensor | None) -> HeadModel:
    """A head on the target's device: what a folder holds, conditioned if it was saved so, or a new one in float32.

    Args:
        head: its kind, and the options of a new one.
        target: which it is for.
        folder: a trained one; None makes a new one.
        ids_R: what a new one with a draft vocabulary may draft; None where a checkpoint will say it.

    Raises:
        UserError: no such head, or a head for another target.
    """
    if folder is not None:
        return _loaded(head, Path(folder).expanduser(), target)
    if head.draft_vocabulary is not None and ids_R is None:
        ids_R = torch.arange(head.draft_vocabulary)
    return head.build(head_target(target), ids_R).requires_grad_(True)


def _loaded(head: DraftHead, folder: Path, target: PreTrainedModel) -> HeadModel:
    """A trained head; that it may be conditioned is no matter of its kind."""
    model = head.load(folder, head_target(target)).requires_grad_(True)
    try:
        return load_conditioning(model, folder)
    except SafetensorError as error:
        raise UserError(f"cannot read {folder / FILE}: {str(error).splitlines()[0]}; write the head again") from error


def check_head_folder(folder: str | None, option: str = "model.draft") -> None:
    """Refuse a name that leads to no folder; None is a new head.

    Args:
        folder: the name.
        option: what it was given by.

    Raises:
        UserError: there is none.
    """
    if folder is not None and not Path(folder).expanduser().is_dir():
        raise UserError(f"{option} must be the folder of a trained head with model.head, got {folder}: no such folder")


def refuse_head_folder(folder: str) -> None:
    """Refuse a head's folder where a language model is expected: a Llama's `config.json` is what it has.

    Raises:
        UserError: it is one.
    """
    if is_head_folder(Path(folder).expanduser()):
        raise UserError(f"{folder} is a head, which model.draft names beside its kind: add model.head: Eagle3")


def cast_draft(draft: DraftModel, dtype: torch.dtype) -> None:
    """Round or widen a draft's weights in place, as if it had been loaded so."""
    if isinstance(draft, HeadModel):
        draft.to(dtype)
    else:
        cast_weights(draft, dtype)


def parameters(draft: DraftModel) -> int:
    """The numbers of a draft's own; a head's embeddings are the target's."""
    if isinstance(draft, HeadModel):
        return sum(one.numel() for one in draft.parameters())
    return draft.num_parameters()


def save_head(head: DraftHead, model: HeadModel, target: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a head's folder, in the format that most engines read, whole or not at all.

    Args:
        head: its kind.
        model: the head.
        target: which it is for.
        folder: where to; what is there is replaced in the last moment.
        dtype: what its weights are rounded to.
    """
    with replacing_folder(folder) as fresh:
        head.save(ordinary(model), head_target(target), fresh, head.formats[0], dtype)
        save_conditioning(model, fresh)


def head_state(draft: DraftModel | None) -> dict[str, Any]:
    """What a checkpoint keeps of a head besides its weights: which tokens it drafts."""
    return {_IDS: draft.ids_R} if isinstance(draft, HeadModel) and draft.ids_R is not None else {}


def take_up_head(model: HeadModel, checkpoint: dict[str, Any], dtype: torch.dtype | None) -> None:
    """Make room for a checkpoint's head: it drafts the checkpoint's tokens; its weights are loaded by Lightning.

    Args:
        model: changed in place.
        checkpoint: its weights are changed in place, too.
        dtype: what both are rounded to, as its exported folder has them; None leaves them as they are.
    """
    if _IDS in checkpoint:
        model.ids_R = checkpoint[_IDS].to(model.output_RH.device)
    if dtype is None:
        return
    model.to(dtype)
    state = checkpoint["state_dict"]
    for name, _ in weights_of(model):
        state[f"draft.{name}"] = state[f"draft.{name}"].to(dtype)
