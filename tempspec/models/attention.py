"""Which attention implementation a model uses: one for training, another for decoding (floor 3)."""

from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from tempspec.errors import UserError
from tempspec.models.hub import silence

__all__ = ["check_takes_masks", "use_attention"]

_WITHOUT_MASKS = ("flash", "flex", "paged")
"""Parts of the names of implementations that take no 4-D mask; the engine separates its rows by such a mask."""

_own: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def check_takes_masks(name: str) -> None:
    """Refuse an attention implementation that the engine cannot call.

    Raises:
        UserError: it takes no 4-D mask.
    """
    if any(part in name for part in _WITHOUT_MASKS):
        raise UserError(
            f"decoding needs an attention that takes a mask, such as sdpa or eager, got {name}: set "
            "model.loading.decoding_attn_implementation: sdpa"
        )


def use_attention(model: PreTrainedModel, name: str | None) -> None:
    """Let a model attend by another implementation from now on.

    Args:
        model: changed in place.
        name: of the implementation, as transformers calls it; None is the one that it was loaded with.

    Raises:
        UserError: the model has no such implementation, or its package is not installed.
    """
    before = model.config._attn_implementation
    wanted = name or _own.setdefault(model, before)
    _own.setdefault(model, before)
    if wanted == before:
        return
    kind = model.config.model_type
    try:
        with silence():
            model.set_attn_implementation(wanted)
    except (ImportError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"a {kind} cannot attend by {wanted}: {reason}; without the option it attends by {before}"
        ) from error
    if model.config._attn_implementation == before:  # a model that cannot change only warns
        raise UserError(f"a {kind} cannot attend by {wanted}: it has {before} alone; leave the option out")
