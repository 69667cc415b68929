"""Which attention implementation a model uses: one for training, another for decoding (floor 3).

Axes: R rows, A query heads, G key-value heads, N new tokens, L positions viewed, D numbers of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tempspec.errors import UserError
from tempspec.models.hub import silence

__all__ = ["attending_in_groups", "check_takes_masks", "grouped_sdpa", "use_attention"]

_GROUPED = "tempspec_grouped_sdpa"
"""What `grouped_sdpa` is called among transformers' attention implementations."""

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
        raise UserError(f"a {kind} cannot attend by {wanted}: it has only {before}; leave the option out")


# ---------------------------------------------------------------------------------------------------------------------
# Grouped queries
# ---------------------------------------------------------------------------------------------------------------------


def grouped_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Transformers' sdpa; where heads share keys and a mask is given, without a copy of the keys for each head.

    The heads of a group become queries of their one key-value head: `[R, A, N, D]` is seen as `[R, G, A/G N, D]`, and
    the mask is repeated in place of the whole cache. A verify pass of a few tokens after a long text reads its keys
    once, then.

    Args:
        module: the attention layer; its `num_key_value_groups` is A/G.
        query: `[R, A, N, D]`.
        key: `[R, G, L, D]`.
        value: likewise.
        attention_mask: `[R or 1, 1, N, L]`, boolean or added to the scores; any other goes the plain way.
        dropout: share of the weights that is dropped.
        scaling: of the scores.
        options: as transformers passes them.

    Returns:
        `[R, N, A, D]`, and no weights.
    """
    groups: int = getattr(module, "num_key_value_groups", 1)
    rows, heads, new, size = query.shape
    one_for_all = attention_mask is not None and attention_mask.shape[1] == 1 and attention_mask.shape[2] == new
    if groups == 1 or not one_for_all or options.get("position_bias") is not None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    assert attention_mask is not None
    output_RGND = nn.functional.scaled_dot_product_attention(
        query.reshape(rows, heads // groups, groups * new, size),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        dropout_p=dropout,
        scale=scaling,
    )
    return output_RGND.reshape(rows, heads, new, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(_GROUPED, grouped_sdpa)
AttentionMaskInterface.register(_GROUPED, sdpa_mask)


@contextmanager
def attending_in_groups(*models: object) -> Iterator[None]:
    """Within it, models whose heads share keys attend by `grouped_sdpa` where they attend by sdpa otherwise.

    Args:
        models: language models; anything else is left alone.
    """
    changed = [model for model in models if isinstance(model, PreTrainedModel) and _shares_keys(model)]
    for model in changed:
        model.set_attn_implementation(_GROUPED)
    try:
        yield
    finally:
        for model in changed:
            model.set_attn_implementation("sdpa")


def _shares_keys(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    shared = (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) < config.num_attention_heads
    return bool(model.config._attn_implementation == "sdpa" and shared)
