"""Models over several processes: FSDP2 under Lightning's ModelParallelStrategy (floor 5)."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from tempspec.errors import UserError
from tempspec.models.conditioning import is_conditioned

__all__ = ["is_sharding", "refuse_unshardable", "register_fsdp2", "shard", "shard_layers", "whole_state"]

NAME = "fsdp2"
"""What `trainer.strategy` calls it."""


def register_fsdp2() -> None:
    """Let `trainer.strategy` be `fsdp2`: ModelParallelStrategy whose checkpoint is one file, read with weights_only."""
    if NAME not in StrategyRegistry:
        StrategyRegistry.register(NAME, ModelParallelStrategy, save_distributed_checkpoint=False)


def is_sharding(trainer: Trainer) -> bool:
    """Whether the trainer's strategy leaves it to the module to shard what it trains.

    Raises:
        UserError: its checkpoints would be folders, which cannot be read without unpickling.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return False
    if strategy._save_distributed_checkpoint:
        raise UserError(f"trainer.strategy got ModelParallelStrategy with a checkpoint of many files: set it to {NAME}")
    return True


def refuse_unshardable(draft: nn.Module, *, writes: bool, learns: bool) -> None:
    """Refuse what needs the whole draft in every process.

    Args:
        draft: what is to be trained in parts.
        writes: whether text is written while training.
        learns: whether a divergence or schedule has weights of its own.

    Raises:
        UserError: naming it.
    """
    for what, wrong in (
        ("model.online", writes),
        ("a draft that is conditioned on its temperature", is_conditioned(draft)),
        ("a head", not isinstance(draft, PreTrainedModel)),
        ("a divergence or schedule that learns", learns),
    ):
        if wrong:
            raise UserError(f"{what} expected every process to hold the whole draft, got strategy fsdp2: take ddp")


def shard(model: PreTrainedModel, trainer: Trainer) -> None:
    """Shard all weights of a model that is trained, layer by layer, over all processes."""
    shard_layers(model, trainer)
    fully_shard(model, mesh=_mesh(trainer))


def shard_layers(model: PreTrainedModel, trainer: Trainer) -> None:
    """Shard the layers of a model over all processes, one layer on the device at a time.

    Embedding, final norm and head stay whole, so that hidden states and head of a frozen model can be used separately.
    """
    layers = next((part for part in model.modules() if isinstance(part, nn.ModuleList)), None)
    if layers is None:
        raise UserError(f"a {model.config.model_type} has no list of layers to shard: use trainer.strategy ddp")
    for layer in layers:
        # Each is a root of its own here, whose default is to stay whole after its forward pass.
        fully_shard(layer, mesh=_mesh(trainer), reshard_after_forward=True)


def whole_state(model: nn.Module) -> dict[str, Any] | None:
    """A sharded model's whole weights on the first process, nothing on the others; None for an ordinary model.

    Collective where the model is sharded.
    """
    if not isinstance(model, FSDPModule):
        return None
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _mesh(trainer: Trainer) -> DeviceMesh:
    return init_device_mesh(trainer.strategy.root_device.type, (trainer.world_size,))
