"""Activations that are computed again in the backward pass instead of kept (floor 3)."""

from transformers import PreTrainedModel

from tempspec.errors import UserError
from tempspec.interfaces import HeadModel

__all__ = ["recompute_activations"]


def recompute_activations(model: PreTrainedModel | HeadModel) -> None:
    """Keep only each layer's input in train mode, and run the layer again in the backward pass.

    Of a head it is the input of each unrolled step. Without gradients and in eval mode nothing changes, caches
    included.

    Raises:
        UserError: the architecture does not support it.
    """
    if isinstance(model, HeadModel):
        if type(model).unrolled is not HeadModel.unrolled:
            raise UserError(
                f"gradient_checkpointing is not for a {type(model).__name__}, which unrolls its steps itself: set it "
                "to false"
            )
        model.recomputes = True
        return
    # transformers renames it, and warns of the old name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"gradient_checkpointing is not for a {model.config.model_type}, whose layers cannot be run again: set it "
            "to false"
        ) from error
