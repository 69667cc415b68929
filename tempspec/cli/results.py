"""What the Lightning subcommands leave behind: tables on the screen, metrics.json and summary.csv (floor 6)."""

from pathlib import Path
from typing import Any

from rich.console import Console

from tempspec.metrics.acceptance_grid import GridEstimates
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.decoding import SweepMetrics
from tempspec.metrics.rows import Cell
from tempspec.modules.distillation import DistillationModule
from tempspec.reporting.records import summary_rows, write_metrics_json, write_summary_csv
from tempspec.reporting.tables import DecodingTable, validation_table

ANALYTIC = "analytic"
"""Stands for the verifier in the files of validate and test, where nothing is decoded."""


def report_grids(module: DistillationModule, folder: Path, console: Console) -> None:
    """Print and write the analytic acceptance of every set; every rank calls it, rank 0 writes.

    Args:
        module: after validate or test.
        folder: the stage's folder.
        console: where the tables go.
    """
    grids = {name: grid.grid() for name, grid in module.grids.items()}
    if not module.trainer.is_global_zero:
        return
    for name, grid in grids.items():
        console.print(validation_table(grid, title=name))
    _write(folder, {cell: found for name, grid in grids.items() for cell, found in _cells(name, grid).items()})


def report_sweep(module: DistillationModule, folder: Path, console: Console) -> None:
    """Merge the rows of predict, print their table and write its files; every rank calls it, rank 0 writes.

    Args:
        module: after predict.
        folder: the stage's folder.
        console: where the table goes.
    """
    trainer = module.trainer
    rows = module.runner.finish(trainer.global_rank)
    ratio = module.parameter_ratio
    metrics = SweepMetrics.of_rows(rows, parameter_ratio=ratio, rank=trainer.global_rank, world=trainer.world_size)
    estimates = metrics.to(module.device).estimates()
    if trainer.is_global_zero:
        console.print(DecodingTable(estimates))
        _write(folder, estimates, parameter_ratio=ratio, timing_batch=1)


def _write(folder: Path, estimates: dict[Cell, dict[str, Estimate]], **facts: Any) -> None:
    write_metrics_json(folder / "metrics.json", estimates, **facts)
    write_summary_csv(folder / "summary.csv", summary_rows(estimates))


def _cells(name: str, grid: GridEstimates) -> dict[Cell, dict[str, Estimate]]:
    """A set's grid as cells: acceptance at every pair, the rest where the temperatures are equal."""
    cells: dict[Cell, dict[str, Estimate]] = {}
    for (target, draft), estimate in grid.acceptance.items():
        found = {"analytic_acceptance": estimate}
        if target == draft:
            found["total_variation"] = estimate.complement()
            found |= {"argmax_acceptance": grid.argmax[target], "sampled_match_acceptance": grid.match[target]}
            found["target_entropy"] = grid.entropy[target]
        cells[Cell(ANALYTIC, name, target, draft)] = found
    return cells
