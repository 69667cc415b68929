"""What a fit takes of a device's memory, from the models' configurations alone (floor 5).

Nothing is loaded: the models are built on torch's meta device, and a step is rehearsed there.
"""

from dataclasses import dataclass, replace

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tempspec.errors import UserError
from tempspec.interfaces import Divergence, HeadModel
from tempspec.models.conditioning import condition
from tempspec.models.cutting import first_layers
from tempspec.models.head_draft import DraftModel, make_head
from tempspec.models.loading import load_config
from tempspec.models.pair import Pair
from tempspec.models.recomputing import recompute_activations
from tempspec.modules.fit.head_rehearsal import HeadPlan, rehearse_head
from tempspec.modules.fit.optim import default_optimizer
from tempspec.modules.fit.rehearsal import InMemory, StepPlan, Unknowable, rehearse
from tempspec.modules.outputs import chunk_length, memory_of
from tempspec.plugins.divergences import ForwardKL

__all__ = ["Memory", "Sizes", "Way", "estimate", "sizes", "ways"]

_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
"""What `trainer.precision` makes of a pass, and of the draft's weights."""


@dataclass(frozen=True)
class Sizes:
    """What a pair and a batch come to, in bytes; each as if it were on one device alone.

    Attributes:
        draft_weights: the draft's parameters, in the precision of training.
        draft_layer: the largest of its layers.
        states: what the optimiser keeps.
        target_layers: the parameters of the target's layers.
        target_rest: the target's other parameters: embedding, norm, head.
        target_layer: the largest of its layers.
        reference: a reference draft's parameters, and what its forward pass has at a time.
        moments: what a step has besides, at the times that may be the fullest.
        whole: the same with whole logits; empty where the draft is never in parts.
    """

    draft_weights: int
    draft_layer: int
    states: int
    target_layers: int
    target_rest: int
    target_layer: int
    reference: int
    moments: tuple[InMemory, ...]
    whole: tuple[InMemory, ...]


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
    """Bytes on each device at the time when they are most."""

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
    gathered = 2 * found.draft_layer if way.shard_draft else 0
    # DDP's buckets hold the gradients once more, from the beginning.
    buckets = found.draft_weights if way.devices > 1 and not way.shard_draft else 0
    target = found.target_rest + found.target_layers // layers + (2 * found.target_layer if way.shard_target else 0)
    return max(
        (
            Memory(
                weights=found.draft_weights // parts + gathered,
                gradients=moment.gradients // parts + (gathered if moment.gradients else 0) + buckets,
                states=found.states // parts,
                activations=moment.activations,
                logits=moment.logits,
                target=target + moment.target,
                reference=found.reference,
            )
            for moment in (found.whole if way.shard_draft else found.moments)
        ),
        key=lambda memory: memory.total,
    )


def sizes(
    pair: Pair,
    *,
    batch_size: int,
    length: int,
    optimizer: OptimizerCallable | None = None,
    device: str = "cpu",
    conditioning_rank: int = 0,
    from_cache: bool = False,
    chunk_tokens: int | None = None,
    reference: str | None = None,
    divergence: Divergence | None = None,
    label_weight: float = 0.0,
    precision: str | int | None = None,
    gradient_checkpointing: bool = False,
    head_steps: int = 1,
    from_features: bool = False,
) -> Sizes:
    """The sizes of a pair, from its configurations.

    Args:
        pair: the models.
        batch_size: rows of a batch, on each device.
        length: tokens of a row.
        optimizer: parameters -> optimiser; the default one if None.
        device: `cpu` or `cuda`, which differ in the size of the loss' chunks and in kernels.
        conditioning_rank: as `DistillationModule` takes it.
        from_cache: whether the draft learns from a cached teacher, without the target.
        chunk_tokens: as `DistillationModule` takes it.
        reference: the draft that tokens are selected by, if any.
        divergence: what is minimised; `ForwardKL` if None.
        label_weight: as `DistillationModule` takes it.
        precision: the Trainer's.
        gradient_checkpointing: whether the draft's layers are computed anew in the backward pass.
        head_steps: unrolled steps of a head.
        from_features: whether a head learns from the target's states in files, without its forward pass.

    Raises:
        UserError: no such model, no draft is named, or code that must know what is in a tensor.
    """
    target = _target(pair)
    draft = _draft(pair, target)
    if conditioning_rank:
        condition(draft, conditioning_rank)
    draft = draft.to(_TRUE.get(str(precision), _training_dtype(pair)))
    if gradient_checkpointing:
        recompute_activations(draft)
    other = None if reference is None else _reference(reference, pair, target)
    models = [target] if isinstance(draft, HeadModel) else [draft, target]
    vocabulary = min(model.get_output_embeddings().weight.shape[0] for model in models)
    mixed = _MIXED.get(str(precision))
    chunk = chunk_length(vocabulary, device, batch_size * length, memory_of(device))
    step = StepPlan(
        batch_size,
        length,
        vocabulary,
        chunk if chunk_tokens is None else chunk_tokens,
        ForwardKL() if divergence is None else divergence,
        label_weight,
        autocast=mixed,
        math=device != "cpu" and mixed is None and _unfused(draft, target),
    )
    trained, layers = _bytes(draft), _layers(target)
    found = Sizes(
        draft_weights=trained,
        draft_layer=max(map(_bytes, _layers(draft)), default=0),
        states=round(trained * _states_per_parameter(optimizer or default_optimizer)),
        target_layers=0 if from_cache else sum(map(_bytes, layers)),
        target_rest=0 if from_cache else _bytes(target) - sum(map(_bytes, layers)),
        target_layer=0 if from_cache else max(map(_bytes, layers), default=0),
        reference=0 if other is None else _bytes(other) + _hidden(other, step, head_steps),
        moments=(),
        whole=(),
    )
    whole: list[InMemory] = []
    stepping = InMemory(gradients=trained, activations=_stepping(draft, device))
    try:
        if isinstance(draft, HeadModel):
            plan = HeadPlan(head_steps, from_features, step.divergence.infinite_at_zeros())
            moments = rehearse_head(draft, target, step, plan)
        else:
            moments, whole = rehearse(draft, None if from_cache else target, other, step)
    except Unknowable as error:
        raise UserError(
            "expected a model and a divergence whose memory does not depend on what is in a tensor, got one where it "
            f"does ({error}): leave --estimate out"
        ) from error
    return replace(found, moments=(*moments, stepping), whole=(*whole, stepping) if whole else ())


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


def _draft(pair: Pair, target: PreTrainedModel) -> DraftModel:
    if pair.draft_layers is not None:
        return first_layers(target, pair.draft_layers, spacing=pair.spacing, width=pair.width)
    if pair.head is not None:
        ids_R = None if pair.head.draft_vocabulary is None else torch.arange(pair.head.draft_vocabulary)
        return make_head(pair.head, target, pair.draft, ids_R).to("meta")
    if pair.draft is None:
        raise UserError("this needs a draft, got none: set model.draft to a folder or model.draft_layers to a number")
    return _built(pair.draft, pair.options.draft_revision, pair, pair.options.dtype)


def _reference(path: str, pair: Pair, target: PreTrainedModel) -> DraftModel:
    """The draft that tokens are selected by, of the kind of the pair's own."""
    if pair.head is not None:
        return make_head(pair.head, target, path, None).to("meta")
    return _built(path, None, pair, pair.options.dtype)


def _training_dtype(pair: Pair) -> torch.dtype:
    """A draft in training is float32 unless a dtype is named."""
    return torch.float32 if pair.options.dtype == "auto" else getattr(torch, pair.options.dtype)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _layers(model: nn.Module) -> list[nn.Module]:
    return list(next((part for part in model.modules() if isinstance(part, nn.ModuleList)), nn.ModuleList()))


def _hidden(model: DraftModel, step: StepPlan, steps: int) -> int:
    """Bytes of a frozen draft's outputs, which wait for the loss; of a head those of all its steps."""
    if isinstance(model, HeadModel):
        weight_VH, passes = model.output_RH, steps
    else:
        weight_VH, passes = model.get_output_embeddings().weight, 1
    return passes * step.batch_size * (step.length - 1) * weight_VH.shape[1] * weight_VH.element_size()


def _unfused(draft: DraftModel, target: PreTrainedModel) -> bool:
    """Whether CUDA has no fused kernel for a draft's attention in float32: the one that takes it needs equal heads."""
    shaped = target if isinstance(draft, HeadModel) else draft  # a head's own heads are the target's
    config = shaped.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    grouped = (getattr(config, "num_key_value_heads", None) or heads) != heads
    sdpa = isinstance(draft, HeadModel) or draft.config._attn_implementation == "sdpa"
    return sdpa and grouped and draft.dtype == torch.float32


def _stepping(model: nn.Module, device: str) -> int:
    """Bytes of the optimiser's own tensors within a step: a CPU goes parameter by parameter, CUDA takes all at once."""
    each = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    return 2 * max(each) if device == "cpu" else sum(each)


def _states_per_parameter(optimizer: OptimizerCallable) -> float:
    """Numbers that an optimiser keeps for each parameter, found by one step on a small matrix."""
    parameter = nn.Parameter(torch.zeros(32, 32, dtype=torch.float32))
    made = optimizer([parameter])
    parameter.grad = torch.zeros_like(parameter)
    made.step()
    kept = (value for state in made.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(value.numel() for value in kept) / parameter.numel()
