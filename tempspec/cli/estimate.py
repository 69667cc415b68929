"""`tempspec fit --estimate`: what a fit takes of each device's memory (floor 6)."""

from dataclasses import fields
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.memory import Memory, Sizes, Way, estimate, sizes, ways

__all__ = ["report"]

_ILLUSTRATION = 8
"""Devices of the table where the configuration names one."""


def report(options: Any, module: DistillationModule) -> None:
    """Print a column for each way to spread the pair over devices.

    Args:
        options: fit's parsed configuration.
        module: what it describes; nothing of it is loaded.
    """
    training = module.draft_training
    data, model = options.data.get("init_args", options.data), options.model
    found = sizes(
        module.pair,
        batch_size=data.batch_size,
        length=data.max_length,
        optimizer=module.optimizer,
        device="cuda" if torch.cuda.is_available() else "cpu",
        conditioning_rank=training.conditioning_rank,
        from_cache=training.teacher is not None,
        chunk_tokens=training.chunk_tokens,
        reference=None if model.selection is None else model.selection.reference,
        divergence=training.divergence,
        label_weight=training.loss.label_weight,
        precision=options.trainer.precision,
        gradient_checkpointing=training.gradient_checkpointing,
        head_steps=training.head_training.steps,
        from_features=training.features is not None,
    )
    # A head is never in parts.
    possible = [way for way in ways(_devices(options.trainer)) if found.whole or not way.shard_draft]
    Console().print(_table(found, possible))
    if training.online is not None:
        print("not counted: model.online")


def _devices(trainer: Any) -> int:
    """The devices that the configuration names, or enough for an illustration."""
    named = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1
    total = named * trainer.num_nodes
    return total if total > 1 else _ILLUSTRATION


def _table(pair: Sizes, chosen: list[Way]) -> Table:
    parts = [field.name for field in fields(Memory)] + ["total"]
    memories = [estimate(pair, way) for way in chosen]
    unit, size = ("GiB", 2**30) if max(memory.total for memory in memories) >= 2**30 else ("MiB", 2**20)
    table = Table(title=f"{unit} on each device", title_justify="left", box=None, pad_edge=False)
    table.add_column("strategy", no_wrap=True)
    for way in chosen:
        table.add_column(way.name, justify="right", max_width=8)
    table.add_row("devices", *(str(way.devices) for way in chosen))
    for part in parts:
        found = [getattr(memory, part) for memory in memories]
        if any(found):
            table.add_row(part, *(f"{value / size:.3g}" for value in found))
    return table
