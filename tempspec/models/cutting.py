"""A draft made of some of the target's layers (floor 3)."""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tempspec.errors import UserError

__all__ = ["Spacing", "first_layers"]

Spacing = Literal["first", "even"]


def first_layers(
    target: PreTrainedModel,
    count: int,
    *,
    spacing: Spacing = "first",
    width: int | None = None,
    option: str = "draft_layers",
    share: bool = False,
) -> PreTrainedModel:
    """A model of some of the target's layers, on its device, with its embeddings, norm and head.

    Args:
        target: a causal language model whose config counts its layers in `num_hidden_layers`.
        count: 1 to the target's own number of layers.
        spacing: the `first` layers, or layers spread `even`ly from the first to the last.
        width: the hidden size; a narrower model takes the leading part of every weight, with heads of the same size.
        option: what the user calls `count`.
        share: hold the target's own weights, first layers in full width, instead of copies: for decoding, not training.

    Raises:
        UserError: `count` or `width` is out of range, the weights are quantised, or the architecture cannot be cut this
            way.
    """
    if getattr(target, "hf_quantizer", None) is not None:
        raise UserError(
            f"{option} cuts ordinary weights, got a target that is quantised: name a draft, or cut it from the original"
        )
    layers = target.config.num_hidden_layers
    if not 1 <= count <= layers:
        raise UserError(f"{option} must be 1 to {layers}, the target's number of layers, got {count}")
    chosen = list(range(count)) if spacing == "first" else _even(count, layers)
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = count
    for name, values in _lists_by_layer(target.config):
        setattr(config, name, [values[layer] for layer in chosen])
    weights = target.state_dict()
    if width is not None and width != config.hidden_size:
        _narrow(config, width, list(weights))
    with torch.device("meta") if share else target.device:
        draft = AutoModelForCausalLM.from_config(
            config, dtype=target.dtype, attn_implementation=target.config._attn_implementation
        )
    source = {
        name: _LAYER.sub(lambda found: f"{found[1]}{chosen[int(found[2])]}.", name) for name in draft.state_dict()
    }
    missing = [name for name, origin in source.items() if origin not in weights]
    if missing:
        raise UserError(f"a {config.model_type} cannot be cut to some of its layers ({missing[0]} has no counterpart)")
    chosen_weights = {
        name: weights[source[name]][tuple(map(slice, value.shape))] for name, value in draft.state_dict().items()
    }
    draft.load_state_dict(chosen_weights, assign=share)
    if share:
        _share_buffers(draft, target)
    draft.generation_config = copy.deepcopy(target.generation_config)
    return draft.eval()


def _share_buffers(draft: PreTrainedModel, target: PreTrainedModel) -> None:
    """Give a draft of the target's first layers the buffers that are in no state dict, such as rotary frequencies."""
    held = draft.state_dict()
    for name, _ in list(draft.named_buffers()):
        if name not in held:
            path, _, own = name.rpartition(".")
            draft.get_submodule(path).register_buffer(own, target.get_buffer(name), persistent=False)
    draft.requires_grad_(False)


_LAYER = re.compile(r"(\.(?:layers|h|blocks)\.)(\d+)\.")
_FUSED = ("c_attn", "qkv", "query_key_value", "gate_up_proj", "W_pack")


def _even(count: int, layers: int) -> list[int]:
    """Numbers of layers spread evenly, the first and the last among them; the first alone if one is asked for.

    >>> _even(3, 12), _even(1, 12), _even(2, 5)
    ([0, 6, 11], [0], [0, 4])
    """
    return [(2 * place * (layers - 1) + count - 1) // (2 * max(count - 1, 1)) for place in range(count)]


def _lists_by_layer(config: PreTrainedConfig) -> Iterator[tuple[str, Sequence[Any]]]:
    """The entries of a config that have a value for every layer; ids of tokens may only happen to be as many."""
    for name, values in vars(config).items():
        if isinstance(values, list | tuple) and len(values) == config.num_hidden_layers and not name.endswith("_id"):
            yield name, values


def _narrow(config: PreTrainedConfig, width: int, names: list[str]) -> None:
    """Scale the sizes of a config down with the hidden size, in whole heads of the same size."""
    whole, heads = config.hidden_size, config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or whole // heads
    fused = next((name for name in names if any(part in name for part in _FUSED)), None)
    if fused is not None or not hasattr(config, "intermediate_size"):
        raise UserError(
            f"a {config.model_type} cannot be narrowed: {fused or 'its sizes'} cannot be cut; drop draft_width"
        )
    fewer, fewer_groups = heads * width // whole, max(groups * width // whole, 1)
    if not 0 < width < whole or fewer < 1 or fewer * whole != heads * width or fewer % fewer_groups:
        raise UserError(
            f"draft_width must leave whole heads of the target's {heads} over {whole}, got {width}: "
            f"take a multiple of {whole // heads} below {whole}"
        )
    config.hidden_size, config.head_dim = width, size
    config.num_attention_heads, config.num_key_value_heads = fewer, fewer_groups
    config.intermediate_size = max(config.intermediate_size * width // whole, 1)
