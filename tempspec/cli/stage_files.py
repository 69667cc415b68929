"""What the Lightning subcommands leave: tables on the screen, metrics.json and summary.csv (floor 6)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tempspec.cli.progress import watching
from tempspec.data.digest import digest_file, digest_folder, digest_path
from tempspec.data.module import TextDataModule
from tempspec.data.provenance import Provenance, write_provenance
from tempspec.errors import UserError
from tempspec.metrics.acceptance_grid import GridEstimates
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.rows import Cell
from tempspec.models.hub import weight_files
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.draft_temperatures import write_fitted
from tempspec.modules.openai_client import Server
from tempspec.modules.predict.identity import draft_identity, fitted_for
from tempspec.modules.predict.remote_generation import ServedGeneration
from tempspec.modules.predict.row_metrics import round_rows, sweep_metrics
from tempspec.modules.predict.row_store import RowStore
from tempspec.reporting.console_tables import DecodingTable, category_tables, validation_table
from tempspec.reporting.engine_record import advice_of, engine_record, spoken
from tempspec.reporting.records import prompt_rows, summary_rows, write_metrics_json, write_parquet, write_summary_csv

ANALYTIC = "analytic"
"""In place of a verifier in the files of validate and test, where nothing is decoded."""


def report_grids(module: DistillationModule, folder: Path) -> None:
    """Print and write the analytic acceptance of every set; every rank calls it, rank 0 writes.

    Args:
        module: after validate or test.
        folder: the stage's folder.
    """
    measured = module.measurement
    grids = {name: grid.grid() for name, grid in measured.grids.items()}
    fit = measured.fit
    fits, text = ([], []) if fit is None else (fit.fits(), fit.text())
    counted = [row for name, grid in measured.grids.items() for row in prompt_rows(name, grid.by_prompt())]
    if not module.trainer.is_global_zero:
        return
    for name, grid in grids.items():
        Console().print(validation_table(grid, title=name))
    if fit is not None:
        path = write_fitted(folder, fits, fitted_for(module.pair, _checkpoint(module), module.runner.sweep), text)
        for best in fits:
            print(
                f"target temperature {best.target_temperature:g}: fitted draft temperature {best.draft_temperature:g} "
                f"accepts {best.acceptance}, the same temperature {best.same}"
            )
        print(f"for draft_temperatures: fitted, see {path}")
    cells = {cell: found for name, grid in grids.items() for cell, found in _cells(name, grid).items()}
    _write(folder, cells, measured=draft_identity(module.pair, _checkpoint(module)))
    write_parquet(folder / "acceptance.parquet", counted)


def report_sweep(module: DistillationModule, folder: Path) -> None:
    """Print the table of predict's rows and write its files, on rank 0.

    Args:
        module: after predict.
        folder: the stage's folder.
    """
    runner, ratio = module.runner, module.parameter_ratio
    if not module.trainer.is_global_zero:
        return
    whole, named = sweep_metrics(runner.store, runner.order, ratio)
    estimates, by_category = whole.estimates(), named.estimates()
    Console().print(*category_tables(by_category), DecodingTable(estimates))  # what matters most last
    for note in whole.places.notes():
        print(note)
    measured = draft_identity(module.pair, _checkpoint(module), used=runner.needs_draft)
    facts = {
        "measured": measured,
        "parameter_ratio": ratio,
        "slots": runner.sweep.slots,
        "timing_slots": list(whole.timing_slots),
    }
    _write(folder, estimates | by_category, **facts, **runner.busy_share())
    for line in _engine_advice(module, folder.parent, measured):
        print(line)


def _engine_advice(module: DistillationModule, run: Path, measured: Mapping[str, str]) -> Iterator[str]:
    """What to draft in the engine that serve-check has timed in this run; nothing where it has timed none."""
    runner = module.runner
    rules = {label: type(rule).__name__ for label, rule in runner.verifiers.items()}
    try:
        record, note = engine_record(run, measured)
    except UserError as error:  # of another command's file: what predict measured is on the disk already
        record, note = {}, str(error)
    if note:
        yield note
    yield from spoken(record.get("kind", ""), advice_of(record, round_rows(runner.store, runner.order), rules))


def report_generated(module: DistillationModule, data: TextDataModule, folder: Path) -> None:
    """Write where the rows of generate come from, on rank 0.

    Args:
        module: after generate.
        data: where the prompts came from.
        folder: the stage's folder.
    """
    if module.trainer.is_global_zero:
        _report_rows(module.runner.store, module.runner.order, module, data, None)


def generate_served(
    module: DistillationModule, data: TextDataModule, server: Server, folder: Path, shown: bool = True
) -> None:
    """Take the target's text from a server, and write where it comes from.

    Args:
        module: names the target and the sweep; nothing of it is loaded.
        data: where the prompts come from.
        server: where the target is served.
        folder: the stage's folder.
        shown: whether progress is.
    """
    data.begin_generation()
    with watching(shown) as watch:
        served = ServedGeneration(module.pair, module.runner.sweep, server, watch)
        store, keys = served.run(data.prompt_sets(folder), folder)
    _report_rows(store, keys, module, data, served.facts)


def cache_served_teacher(module: DistillationModule, data: TextDataModule, server: Server, shown: bool = True) -> None:
    """Take a cached teacher from a server.

    Args:
        module: says what is kept; nothing of it is loaded.
        data: whose training rows the target reads.
        server: where the target is served.
        shown: whether progress is.
    """
    with watching(shown) as watch:
        module.draft_training.write_served_cache(data, server, watch)


def _report_rows(
    store: RowStore, keys: list[str], module: DistillationModule, data: TextDataModule, server: dict[str, str] | None
) -> None:
    """The record beside a file of generated rows, which is of all of them, and one line about this sweep's."""
    pair, sweep = module.pair, module.runner.sweep
    files = {name: source.file for name, source in data.prompt_sources.items()}
    digests = {name: digest_path(file) if file.exists() else None for name, file in files.items()}
    count, tokens = store.count("response_ids", keys)
    record = Provenance(
        target=pair.target,
        target_revision=pair.options.target_revision,
        weights_digest=_weights_digest(pair.target) if server is None else None,
        generation_temperatures=store.distinct("generation_temperature"),
        top_k=sweep.top_k,
        top_p=sweep.top_p,
        min_p=sweep.min_p,
        seed=sweep.seed,
        prompt_sets=dict.fromkeys(store.distinct("prompt_set")) | digests,
        count=store.finished,
        target_quantised=pair.quantised if server is None else None,
        server=server,
    )
    beside = write_provenance(store.path.parent, record)
    more = f", next to {record.count - count} of other sweeps" if record.count > count else ""
    print(f"{count} responses, {tokens} tokens{more}: {store.path}; where they come from: {beside}")


def _weights_digest(target: str) -> str | None:
    """Of a target's weights; None for a hub name."""
    files = weight_files(target)
    if not files:
        return None
    return digest_file(files[0]) if files[0].suffix == ".gguf" else digest_folder(files[0].parent, "*.safetensors")


def _checkpoint(module: DistillationModule) -> str | None:
    """The file that the draft's weights came from, if not from its folder."""
    path = module.trainer.ckpt_path
    return str(path) if path else None


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
