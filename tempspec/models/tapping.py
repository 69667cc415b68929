"""A target's states between its layers, from the same pass that gives its last hidden states (floor 3).

State k is the input of layer k: 0 is the embeddings, and n, of n layers, is the output of the last one. That is element
k of transformers' `hidden_states`, but for k = n, where transformers puts the final norm on top.

Axes: B batch, T positions, H hidden.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tempspec.errors import UserError
from tempspec.interfaces import HeadTarget
from tempspec.models.heads import hidden_states

__all__ = ["Tapped", "Taps", "final_norm", "head_target", "tapped"]


class Tapped(NamedTuple):
    """What a pass of a target gives a head.

    Attributes:
        states: the states that were asked for, `[B, T, H]` each.
        hidden_BTH: the input of the target's own head.
    """

    states: tuple[Tensor, ...]
    hidden_BTH: Tensor


class Taps:
    """Keeps some states of every forward pass within a `with` block, until the next pass.

    Args:
        model: a causal language model.
        states: which, ascending, 0 to its number of layers.

    Raises:
        UserError: the model has no list of its layers, or no such state.
    """

    def __init__(self, model: PreTrainedModel, states: Sequence[int]) -> None:
        self._layers = _layers(model)
        if not all(0 <= state <= len(self._layers) for state in states):
            raise UserError(f"states must be 0 to {len(self._layers)}, the number of layers, got {list(states)}")
        self._numbers = tuple(states)
        self._found: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for state in self._numbers:
            if state < len(self._layers):
                hook = self._layers[state].register_forward_pre_hook(self._before(state), with_kwargs=True)
            else:
                hook = self._layers[-1].register_forward_hook(self._after(state))
            self._handles.append(hook)
        return self

    def __exit__(self, *failure: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._found.clear()

    @property
    def states(self) -> tuple[Tensor, ...]:
        """Those of the last pass, `[B, T, H]` each, in the order in which they were asked for."""
        return tuple(self._found[state] for state in self._numbers)

    def _before(self, state: int) -> Any:
        def keep(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._found[state] = args[0] if args else named["hidden_states"]

        return keep

    def _after(self, state: int) -> Any:
        def keep(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._found[state] = output[0] if isinstance(output, tuple) else output

        return keep


def tapped(model: PreTrainedModel, states: Sequence[int], **inputs: Tensor | bool) -> Tapped:
    """Some states and the last hidden states of one pass, without logits.

    Args:
        model: the target.
        states: which, as in `Taps`.
        inputs: what its base model takes, as in `hidden_states`.
    """
    with Taps(model, states) as taps:
        hidden_BTH = hidden_states(model, **inputs)
        return Tapped(taps.states, hidden_BTH)


def head_target(model: PreTrainedModel) -> HeadTarget:
    """What heads may know of a model: its text configuration, embeddings and output matrix."""
    embedding_VH = model.get_input_embeddings().weight.detach()
    return HeadTarget(model.config.get_text_config(), embedding_VH, model.get_output_embeddings().weight.detach())


@torch.no_grad()
def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """What turns the last layer's output into the input of the output matrix; None where that is not one module."""
    passed: list[tuple[nn.Module, Any, Any]] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: passed.append((module, args, output)))
        for module in model.base_model.modules()
    ]
    ids_BT = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    try:
        (state_BTH,), hidden_BTH = tapped(model, [len(_layers(model))], input_ids=ids_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    sides = ((module, [*args, None][0], output) for module, args, output in passed)
    return next((module for module, *both in sides if _equal(both, [state_BTH, hidden_BTH])), None)


def _equal(found: Sequence[Any], expected: Sequence[Tensor]) -> bool:
    """Whether values are these tensors, in whatever shape."""
    return all(
        isinstance(one, Tensor) and one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten())
        for one, other in zip(found, expected, strict=True)
    )


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of the model's decoder."""
    count = model.config.get_text_config().num_hidden_layers
    for part in model.base_model.modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return part
    raise UserError(f"a {model.config.model_type} has no list of its {count} layers, whose states heads read")
