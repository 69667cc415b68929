"""Which options of training a head takes, and which reference a head is selected by (floor 5).

Axes: R a head's vocabulary.
"""

import torch
from torch import Tensor

from tempspec.errors import UserError
from tempspec.interfaces import DraftHead, HeadModel
from tempspec.modules.fit.features import CachedFeatures
from tempspec.modules.fit.online_text import OnlineText
from tempspec.modules.fit.teacher_cache import CachedTeacher

__all__ = ["check_head_options", "check_reference_head"]


def check_head_options(
    head: DraftHead, online: OnlineText | None, teacher: CachedTeacher | None, features: CachedFeatures | None
) -> None:
    """Refuse what a head cannot be trained with.

    Args:
        head: its kind.
        online: text that is written while training.
        teacher: a cache of the target's logits.
        features: a cache of the target's states.

    Raises:
        UserError: naming it.
    """
    kind = type(head).__name__
    if teacher is not None:
        raise UserError(
            f"model.teacher is for a language model, got it with {kind}, which needs the target's states: take "
            "model.features, which keeps these and the target's whole distribution"
        )
    if online is None:
        return
    if features is not None:
        raise UserError("model.features has no states of text that model.online writes: leave one of them out")
    if online.writer == "draft":
        raise UserError(
            f"online.writer must be target or both for {kind}, which drafts only after the target, got {online.writer}"
        )


def check_reference_head(head: HeadModel, reference: HeadModel) -> None:
    """Refuse a reference whose loss says nothing of a head's: it reads other states, or drafts other tokens.

    Args:
        head: the head that learns.
        reference: the head that its tokens are selected by.

    Raises:
        UserError: naming the difference.
    """
    if head.states != reference.states:
        raise UserError(
            f"selection.reference must read the states {list(head.states)} as the head does, got "
            f"{list(reference.states)}: name a head that was trained like it"
        )
    if not _equal(head.ids_R, reference.ids_R):
        raise UserError(
            "selection.reference must draft the head's own tokens, got a head with another draft vocabulary: name one "
            "that was trained on the same text, with the same draft_vocabulary"
        )


def _equal(one_R: Tensor | None, other_R: Tensor | None) -> bool:
    if one_R is None or other_R is None:
        return one_R is other_R
    return torch.equal(one_R.cpu(), other_R.cpu())
