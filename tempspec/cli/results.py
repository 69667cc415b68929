"""What the Lightning subcommands leave behind: tables on the screen, metrics.json and summary.csv (floor 6)."""

from pathlib import Path
from typing import Any

from rich.console import Console

from tempspec.data.digest import digest_folder, digest_path
from tempspec.data.module import TextDataModule
from tempspec.data.provenance import Provenance, write_provenance
from tempspec.metrics.acceptance_grid import GridEstimates
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.decoding import SweepMetrics
from tempspec.metrics.rows import Cell
from tempspec.modules.distillation import DistillationModule
from tempspec.reporting.records import prompt_rows, summary_rows, write_metrics_json, write_parquet, write_summary_csv
from tempspec.reporting.tables import DecodingTable, validation_table

ANALYTIC = "analytic"
"""Stands for the verifier in the files of validate and test, where nothing is decoded."""


def report_grids(module: DistillationModule, folder: Path) -> None:
    """Print and write the analytic acceptance of every set; every rank calls it, rank 0 writes.

    Args:
        module: after validate or test.
        folder: the stage's folder.
    """
    grids = {name: grid.grid() for name, grid in module.grids.items()}
    counted = [row for name, grid in module.grids.items() for row in prompt_rows(name, grid.by_prompt())]
    if not module.trainer.is_global_zero:
        return
    for name, grid in grids.items():
        Console().print(validation_table(grid, title=name))
    _write(folder, {cell: found for name, grid in grids.items() for cell, found in _cells(name, grid).items()})
    write_parquet(folder / "acceptance.parquet", counted)


def report_sweep(module: DistillationModule, folder: Path) -> None:
    """Merge the rows of predict, print their table and write its files; every rank calls it, rank 0 writes.

    Args:
        module: after predict.
        folder: the stage's folder.
    """
    trainer = module.trainer
    rows = module.runner.finish(trainer.global_rank)
    ratio = module.parameter_ratio
    metrics = SweepMetrics.of_rows(rows, parameter_ratio=ratio, rank=trainer.global_rank, world=trainer.world_size)
    estimates = metrics.to(module.device).estimates()
    if trainer.is_global_zero:
        Console().print(DecodingTable(estimates))
        _write(folder, estimates, parameter_ratio=ratio, timing_batch=1)


def report_generated(module: DistillationModule, data: TextDataModule, folder: Path) -> None:
    """Merge the rows of generate and write where they come from; every rank calls it, rank 0 writes.

    Args:
        module: after generate.
        data: where the prompts came from.
        folder: the stage's folder.
    """
    rows = module.runner.finish(module.trainer.global_rank)
    if not module.trainer.is_global_zero:
        return
    pair, sweep = module.pair, module.runner.sweep
    weights = Path(pair.target).expanduser()
    files = {name: source.file for name, source in data.prompt_sources.items()}
    record = Provenance(
        target=pair.target,
        target_revision=pair.options.target_revision,
        weights_digest=digest_folder(weights, "*.safetensors") if weights.is_dir() else None,
        generation_temperatures=sweep.generation_temperatures,
        top_k=sweep.top_k,
        top_p=sweep.top_p,
        min_p=sweep.min_p,
        seed=sweep.seed,
        prompt_sets={name: digest_path(file) if file.exists() else None for name, file in files.items()},
        count=len(rows),
    )
    beside = write_provenance(folder, record)
    tokens = sum(len(row["response_ids"]) for row in rows)
    print(f"{len(rows)} responses, {tokens} tokens: {module.runner.store.path}; where they come from: {beside}")


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
