"""`tempspec fit --estimate`: what a fit takes of each device's memory (floor 6)."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Optimizer

from tempspec.models.loading import ModelOptions
from tempspec.modules.estimate import Memory, Sizes, Way, estimate, sizes, ways
from tempspec.modules.pair import Pair

__all__ = ["report"]

_ILLUSTRATION = 8
"""Devices of the table where the configuration names one."""


def report(options: Any) -> None:
    """Print a column for each way to spread the pair over devices.

    Args:
        options: fit's parsed configuration.
    """
    model, data = options.model, options.data.get("init_args", options.data)
    loading = ModelOptions(**vars(model.loading)) if model.loading is not None else ModelOptions()
    pair = Pair(model.target, model.draft, model.draft_layers, loading, model.draft_spacing, model.draft_width)
    found = sizes(
        pair,
        batch_size=data.batch_size,
        length=data.max_length,
        optimizer=_optimizer(model.optimizer),
        device="cuda" if torch.cuda.is_available() else "cpu",
        conditioning_rank=model.conditioning_rank,
        from_cache=model.teacher is not None,
        chunk_tokens=model.chunk_tokens,
        reference=None if model.selection is None else model.selection.reference,
    )
    Console().print(_table(found, ways(_devices(options.trainer))))
    if missing := _not_counted(options):
        print(f"not counted: {', '.join(missing)}")


def _not_counted(options: Any) -> list[str]:
    """What the configuration asks for beyond the table."""
    precision = options.trainer.precision
    plain = precision in (None, 32, "32", "32-true")
    online = [] if options.model.online is None else ["model.online"]
    return online + ([] if plain else [f"trainer.precision {precision}"])


def _devices(trainer: Any) -> int:
    """The devices that the configuration names, or enough for an illustration."""
    named = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1
    total = named * trainer.num_nodes
    return total if total > 1 else _ILLUSTRATION


def _optimizer(chosen: Any) -> Callable[[Iterable[nn.Parameter]], Optimizer] | None:
    """The optimiser that a configuration names, which the parser has checked."""
    if chosen is None:
        return None
    module, _, name = chosen.class_path.rpartition(".")
    return partial(getattr(importlib.import_module(module), name), **vars(chosen.get("init_args", {})))


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
