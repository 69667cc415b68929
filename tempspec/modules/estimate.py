"""What a fit takes of a device's memory, from the models' configurations alone (floor 5).

Nothing is loaded: the models are built on torch's meta device, and what a backward pass keeps is counted there.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from tempspec.errors import UserError
from tempspec.models.conditioning import condition, set_temperature
from tempspec.models.loading import first_layers, load_config
from tempspec.modules.objective import chunk_length
from tempspec.modules.optim import default_optimizer
from tempspec.modules.pair import Pair

__all__ = ["Memory", "Sizes", "Way", "estimate", "sizes", "ways"]

_COPIES = 8
"""Float32 tensors of tokens x vocabulary that the objective has at a time: both sides' logits, laws and gradients."""


@dataclass(frozen=True)
class Sizes:
    """What a pair and a batch come to, in bytes; each as if it were on one device alone.

    Attributes:
        draft_weights: the draft's parameters, in the precision of training.
        draft_layer: the largest of its layers.
        states: what the optimiser keeps.
        activations: what the draft's forward pass keeps for its backward.
        target_layers: the parameters of the target's layers.
        target_rest: the target's other parameters: embedding, norm, head.
        target_layer: the largest of its layers.
        target_activations: what the target's forward pass has at a time.
        reference: a reference draft's parameters, and what its forward pass has at a time.
        loss: logits, laws and gradients of the loss, and the head's gradient that its chunks add up.
        whole: the same of whole logits.
    """

    draft_weights: int
    draft_layer: int
    states: int
    activations: int
    target_layers: int
    target_rest: int
    target_layer: int
    target_activations: int
    reference: int
    loss: int
    whole: int


@dataclass(frozen=True)
class Way:
    """How the pair is spread over devices.

    Attributes:
        name: as a table calls it.
        devices: how many.
        shard_draft: whether the draft is in parts (`fsdp2`).
        shard_target: whether the target's layers are in parts.
    """

    name: str
    devices: int
    shard_draft: bool = False
    shard_target: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    weights: int
    gradients: int
    states: int
    activations: int
    logits: int
    target: int
    reference: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


def ways(devices: int) -> list[Way]:
    """One device, and all strategies over several."""
    several = [
        Way("ddp", devices),
        Way("ddp, target sharded", devices, shard_target=True),
        Way("fsdp2", devices, shard_draft=True),
        Way("fsdp2, target sharded", devices, shard_draft=True, shard_target=True),
    ]
    return [Way("one device", 1), *(several if devices > 1 else [])]


def estimate(found: Sizes, way: Way) -> Memory:
    """The memory of a way, per device.

    Args:
        found: the pair's sizes.
        way: how it is spread.
    """
    parts = way.devices if way.shard_draft else 1
    layers = way.devices if way.shard_target else 1
    copies = 2 if way.devices > 1 and not way.shard_draft else 1  # DDP's buckets hold the gradients once more
    return Memory(
        weights=found.draft_weights // parts + (2 * found.draft_layer if way.shard_draft else 0),
        gradients=copies * found.draft_weights // parts + (2 * found.draft_layer if way.shard_draft else 0),
        states=found.states // parts,
        activations=found.activations,
        logits=found.whole if way.shard_draft else found.loss,
        target=found.target_rest
        + found.target_layers // layers
        + (2 * found.target_layer if way.shard_target else 0)
        + found.target_activations,
        reference=found.reference,
    )


def sizes(
    pair: Pair,
    *,
    batch_size: int,
    length: int,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    device: str = "cpu",
    conditioning_rank: int = 0,
    from_cache: bool = False,
    chunk_tokens: int | None = None,
    reference: str | None = None,
) -> Sizes:
    """The sizes of a pair, from its configurations.

    Args:
        pair: the models.
        batch_size: rows of a batch, on each device.
        length: tokens of a row.
        optimizer: parameters -> optimiser; the default one if None.
        device: `cpu` or `cuda`, which differ in the size of the loss' chunks.
        conditioning_rank: as `DistillationModule` takes it.
        from_cache: whether the draft learns from a cached teacher, without the target.
        chunk_tokens: as `DistillationModule` takes it.
        reference: the draft that tokens are selected by, if any.

    Raises:
        UserError: no such model, or no draft is named.
    """
    target = _target(pair)
    draft = _draft(pair, target)
    if conditioning_rank:
        condition(draft, conditioning_rank)
    tokens = batch_size * length
    vocabulary = min(draft.get_output_embeddings().weight.shape[0], target.get_output_embeddings().weight.shape[0])
    size = 0 if from_cache else _bytes(next(target.parameters()).dtype)
    chunk = min(chunk_length(vocabulary, device) if chunk_tokens is None else chunk_tokens, tokens)
    layers, rest = _split(target)
    head = draft.get_output_embeddings().weight
    trained = sum(parameter.numel() for parameter in draft.parameters())
    per_element = _bytes(_training_dtype(pair))
    whole = _COPIES * tokens * vocabulary * 4
    return Sizes(
        draft_weights=trained * per_element,
        draft_layer=max(map(_numel, _split(draft)[0]), default=0) * per_element,
        states=round(trained * _states_per_parameter(optimizer or default_optimizer)) * per_element,
        activations=_kept(draft, batch_size, length),
        target_layers=sum(map(_numel, layers)) * size,
        target_rest=rest * size,
        target_layer=max(map(_numel, layers), default=0) * size,
        target_activations=_passing(target, tokens) * size,
        reference=0 if reference is None else _frozen(_built(reference, None, pair, pair.options.dtype), tokens),
        loss=_COPIES * chunk * vocabulary * 4 + head.numel() * 4 if chunk else whole,
        whole=whole,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def _built(path: str, revision: str | None, pair: Pair, dtype: str) -> PreTrainedModel:
    options = pair.options
    config = load_config(path, revision=revision, trust_remote_code=options.trust_remote_code)
    own = getattr(config, "dtype", None) or torch.float32
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config,
            dtype=own if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=options.attn_implementation,
            trust_remote_code=options.trust_remote_code,
        )


def _target(pair: Pair) -> PreTrainedModel:
    return _built(pair.target, pair.options.target_revision, pair, pair.options.dtype)


def _draft(pair: Pair, target: PreTrainedModel) -> PreTrainedModel:
    if pair.draft_layers is not None:
        return first_layers(target, pair.draft_layers, spacing=pair.spacing, width=pair.width)
    if pair.draft is None:
        raise UserError("this needs a draft, got none: set model.draft to a folder or model.draft_layers to a number")
    return _built(pair.draft, pair.options.draft_revision, pair, pair.options.dtype)


def _training_dtype(pair: Pair) -> torch.dtype:
    """A draft in training is float32 unless a dtype is named."""
    return torch.float32 if pair.options.dtype == "auto" else getattr(torch, pair.options.dtype)


def _bytes(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _passing(model: PreTrainedModel, tokens: int) -> int:
    """Numbers that a forward pass without gradients has at a time: those of one layer."""
    config = model.config.get_text_config()
    width = max(getattr(config, "intermediate_size", None) or 4 * config.hidden_size, config.hidden_size)
    return tokens * (3 * width + 4 * config.hidden_size)


def _frozen(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of a whole model that is only read."""
    return (_numel(model) + _passing(model, tokens)) * _bytes(model.dtype)


def _split(model: PreTrainedModel) -> tuple[list[nn.Module], int]:
    """The layers, and the number of parameters outside of them."""
    found = next((part for part in model.modules() if isinstance(part, nn.ModuleList)), nn.ModuleList())
    layers = list(found)
    return layers, _numel(model) - sum(map(_numel, layers))


def _states_per_parameter(optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]) -> float:
    """Numbers that an optimiser keeps for each parameter, found by one step on a small matrix."""
    parameter = nn.Parameter(torch.zeros(32, 32, dtype=torch.float32))
    made = optimizer([parameter])
    parameter.grad = torch.zeros_like(parameter)
    made.step()
    kept = (value for state in made.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(value.numel() for value in kept) / parameter.numel()


def _kept(model: PreTrainedModel, batch_size: int, length: int) -> int:
    """Bytes that a float32 forward pass of the model's base keeps for its backward, weights apart."""
    model = model.to(torch.float32).train()
    set_temperature(model, 1.0)
    with _counting() as kept, torch.device("meta"):
        ids = torch.zeros(batch_size, length, dtype=torch.int64)
        seen = torch.ones(batch_size, 1, length, length, dtype=torch.bool)  # made here: masks are not made on meta
        model.base_model(input_ids=ids, attention_mask=seen, use_cache=False)
    return sum(kept.values())


@contextmanager
def _counting() -> Iterator[dict[int, int]]:
    """Bytes of all tensors that autograd keeps, by identity of their storage; views count once."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        if not isinstance(value, nn.Parameter):
            base = value._base if value._base is not None else value
            if not isinstance(base, nn.Parameter):
                alive.append(base)
                kept[id(base)] = base.numel() * base.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        yield kept
