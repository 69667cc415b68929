"""One draft for all temperatures: low-rank changes of its weights, scaled by functions of log tau (floor 3).

`condition` gives every linear layer below the output matrix a change that is 0 at tau = 1, in a language model or in a
head on the target's states; rows of one batch may have different temperatures. `at_temperature` adds the change at one
temperature to the weights: an ordinary model. On disk a conditioned draft is the ordinary checkpoint of tau = 1, with
one more file beside it that only tempspec reads.

A model knows the range of temperatures that it was trained at, and takes the nearest of them for any other: nothing
holds its changes outside, and a draft trained from 0.5 upwards is useless at the changes that 0.1 would give it.

Axes: B batch, F functions of log tau, R rank.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.distributed as distributed
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tempspec.errors import UserError
from tempspec.interfaces import Exact, HeadModel

if TYPE_CHECKING:  # it takes seconds to import, and a head's folder is looked at without it
    from transformers import PreTrainedModel

__all__ = [
    "COLDEST",
    "FILE",
    "RANGE",
    "TrainedRange",
    "at_temperature",
    "condition",
    "conditioned_rank",
    "features",
    "is_conditioned",
    "load_conditioning",
    "ordinary",
    "plain_state",
    "save_conditioning",
    "set_temperature",
    "trained_range",
]

Model = TypeVar("Model", "PreTrainedModel", HeadModel)

FILE = "conditioning.safetensors"
COLDEST = 0.1
"""Temperatures below it, 0 included, are conditioned on as this one."""
RANGE = "trained_temperatures"
"""The name, in a model and in its file, of the least and the largest temperature that it was trained at."""


def features(temperature: Tensor) -> Tensor:
    """The functions of log tau that scale the changes: log tau and its square; `[..., 2]`.

    >>> features(torch.tensor([1.0, 2.0]))
    tensor([[0.0000, 0.0000],
            [0.6931, 0.4805]])
    """
    log = temperature.clamp(min=COLDEST).log()
    return torch.stack([log, log.square()], -1)


_FUNCTIONS = 2


class _Dial:
    """What all conditioned layers of a model look at."""

    def __init__(self) -> None:
        self.features_BF: Tensor | None = None


class TrainedRange(Exact):
    """The least and the largest temperature that a model was trained at, float32 `[2]`: infinity and 0 before.

    A parameter without a gradient: DDP would overwrite a buffer of each rank with rank 0's at every forward pass.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        nothing_2 = torch.tensor([torch.inf, 0.0], dtype=torch.float32, device=device)
        self.range_2 = nn.Parameter(nothing_2, requires_grad=False)

    @torch.no_grad()
    def widen(self, temperature_B: Tensor) -> None:
        """Take in temperatures that are trained at now, by all processes: every one of them calls it."""
        low, high = self.range_2
        lowest_2 = torch.stack([low.minimum(temperature_B.min()), -high.maximum(temperature_B.max())])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(lowest_2, distributed.ReduceOp.MIN)
        self.range_2.copy_(torch.stack([lowest_2[0], -lowest_2[1]]))

    def nearest(self, temperature_B: Tensor) -> Tensor:
        """Temperatures within the range; as they are where nothing was trained."""
        low, high = self.range_2
        return torch.where(low <= high, temperature_B.clamp(low, high), temperature_B)


class _Conditioned(nn.Linear):
    """A linear layer with a change of rank R for each function of log tau."""

    def __init__(self, linear: nn.Linear, rank: int, dial: _Dial) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.rank, self.dial = rank, dial
        self.down = nn.Parameter(self.weight.new_empty(_FUNCTIONS * rank, self.in_features).normal_())
        self.down.data.div_(self.in_features**0.5)
        self.up = nn.Parameter(self.weight.new_zeros(self.out_features, _FUNCTIONS * rank))

    def forward(self, input: Tensor) -> Tensor:
        """The ordinary layer, and its change at each row's temperature."""
        plain = nn.functional.linear(input, self.weight, self.bias)
        if self.dial.features_BF is None:
            return plain
        scale_B = self.dial.features_BF.to(input.dtype).repeat_interleave(self.rank, -1)
        narrow = nn.functional.linear(input, self.down) * scale_B.view(-1, *[1] * (input.ndim - 2), scale_B.shape[-1])
        return plain + nn.functional.linear(narrow, self.up)

    def changed(self, features_F: Tensor | None) -> Tensor:
        """The weight at one temperature; None is tau = 1."""
        if features_F is None:
            return self.weight.clone()
        scale = features_F.to(self.weight).repeat_interleave(self.rank)
        return self.weight + (self.up * scale) @ self.down


class _Place(NamedTuple):
    """Where a conditioned layer sits."""

    name: str
    parent: nn.Module
    child: str
    layer: _Conditioned


def condition(model: Model, rank: int) -> Model:
    """Give every linear layer below the output matrix a change: 0 at tau = 1, and everywhere until it is trained.

    Args:
        model: changed in place, and returned.
        rank: R, at least 1.

    Raises:
        UserError: the rank is below 1, or the model has no such layer.
    """
    if rank < 1:
        raise UserError(f"conditioning_rank must be 1 or more, got {rank}; 4 to 16 are usual")
    dial = _Dial()
    below, output = (model, model.output_RH) if isinstance(model, HeadModel) else (model.base_model, None)
    places = [
        (parent, child, module)
        for parent in below.modules()
        for child, module in parent.named_children()
        if type(module) is nn.Linear and module.weight is not output
    ]
    if not places:
        raise UserError(f"a {type(model).__name__} has no linear layers to condition on the temperature")
    for parent, child, module in places:
        setattr(parent, child, _Conditioned(module, rank, dial))
    model.add_module(RANGE, TrainedRange(places[0][2].weight.device))
    return model


def conditioned_rank(model: nn.Module) -> int:
    """The rank of the changes that a temperature makes to the model's weights; 0 for an ordinary model."""
    return max((module.rank for module in model.modules() if isinstance(module, _Conditioned)), default=0)


def is_conditioned(model: nn.Module) -> bool:
    """Whether the model's weights depend on a temperature."""
    return conditioned_rank(model) > 0


def set_temperature(model: nn.Module, temperature: Tensor | float | None) -> None:
    """Choose the temperatures of the coming forward passes; a model in train mode is trained at them from now on.

    Args:
        model: a conditioned model; of others nothing is changed.
        temperature: one for all rows, or one for each, `[B]`; None is tau = 1.
    """
    dials = {id(module.dial): module.dial for module in model.modules() if isinstance(module, _Conditioned)}
    for dial in dials.values():
        if temperature is None:
            dial.features_BF = None
            continue
        known = trained_range(model)
        temperature_B = torch.as_tensor(temperature, dtype=torch.float32, device=known.range_2.device).reshape(-1)
        if model.training:
            known.widen(temperature_B)
        dial.features_BF = features(known.nearest(temperature_B))


def trained_range(model: nn.Module) -> TrainedRange:
    """The temperatures that a conditioned model was trained at."""
    known = model.get_submodule(RANGE)
    assert isinstance(known, TrainedRange)
    return known


def at_temperature(model: Model, temperature: float) -> Model:
    """An ordinary copy of a conditioned model, with the weights of one temperature.

    Args:
        model: a conditioned model, which is left alone.
        temperature: at least 0; the nearest that the model was trained at is taken.

    Raises:
        UserError: the model is not conditioned.
    """
    if not is_conditioned(model):
        raise UserError(
            "expected a draft that is conditioned on the temperature, got an ordinary one, which is the same at "
            "every temperature"
        )
    known = trained_range(model)
    asked = torch.tensor(temperature, dtype=torch.float32, device=known.range_2.device)
    return _folded(model, features(known.nearest(asked)))


def ordinary(model: Model) -> Model:
    """A model without what conditions it, a copy with the weights of tau = 1; an ordinary one as it is."""
    return _folded(model, None) if is_conditioned(model) else model


@torch.no_grad()
def _folded(model: Model, features_F: Tensor | None) -> Model:
    merged = copy.deepcopy(model)
    delattr(merged, RANGE)
    for place in _places(merged):
        layer = place.layer
        size = layer.in_features, layer.out_features
        plain = nn.Linear(*size, bias=layer.bias is not None, device="meta", dtype=layer.weight.dtype)
        plain.weight, plain.bias = nn.Parameter(layer.changed(features_F)), layer.bias
        setattr(place.parent, place.child, plain)
    return merged


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of tau = 1, by the names of the ordinary model."""
    changes = {f"{RANGE}.range_2"} | {f"{place.name}.{part}" for place in _places(model) for part in ("down", "up")}
    return {name: value for name, value in model.state_dict().items() if name not in changes}


def save_conditioning(model: nn.Module, folder: Path) -> None:
    """Write what the ordinary checkpoint lacks; nothing for an ordinary model."""
    changes = {
        f"{place.name}.{part}": getattr(place.layer, part).detach().contiguous()
        for place in _places(model)
        for part in ("down", "up")
    }
    if changes:
        # safetensors' own writer lets nobody else read the file.
        (folder / FILE).write_bytes(save(changes | {RANGE: trained_range(model).range_2.detach()}))


@torch.no_grad()
def load_conditioning(model: Model, folder: str | Path) -> Model:
    """Condition a model that was just loaded, if its folder says so; changed in place, and returned.

    Args:
        model: the ordinary model of tau = 1.
        folder: where it was loaded from, a path as it is: `load_draft` knows `~` and hub names.

    Raises:
        UserError: the file belongs to another model.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return model
    changes = load_file(file)
    rank = next(iter(value.shape[0] for name, value in changes.items() if name.endswith(".down"))) // _FUNCTIONS
    condition(model, rank)
    trained_range(model).range_2.copy_(changes.pop(RANGE))
    try:
        found = model.load_state_dict(changes, strict=False)
    except RuntimeError as error:
        raise UserError(f"{file} belongs to another model: its tensors have other shapes") from error
    if found.unexpected_keys:
        raise UserError(f"{file} belongs to another model: it has a {found.unexpected_keys[0]}")
    return model


def _places(model: nn.Module) -> Iterator[_Place]:
    for name, parent in list(model.named_modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, _Conditioned):
                yield _Place(f"{name}.{child}" if name else child, parent, child, module)
