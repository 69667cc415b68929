"""`tempspec import-results`: accepted lengths that a serving engine counted, beside ours (floor 6)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tempspec.cli import errors
from tempspec.cli.import_results.counts import EngineLog, LoggedCounts
from tempspec.cli.import_results.engine_logs import read_engine_log
from tempspec.cli.screen import quiet
from tempspec.errors import UserError
from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.collection import SweepMetrics
from tempspec.metrics.ratio import ClusteredRatio
from tempspec.reporting.decoded_rows import decoded_rows

__all__ = ["main"]

METRICS = ("block_efficiency", "draft_acceptance")


def main(arguments: Sequence[str]) -> int:
    """Print one table of all files, and of a run of ours.

    Args:
        arguments: `import-results`, the files and the options.

    Raises:
        UserError: a wrong option, an unknown file, or a run without rows.
    """
    parser = errors.parser("tempspec import-results", "An engine's accepted lengths, next to ours.")
    parser.add_argument("files", nargs="+", type=str, help="What the engine wrote.")
    parser.add_argument("--since", type=str, help="An earlier page of vLLM's counters, to count from there on.")
    parser.add_argument("--run", type=str, help="A run folder whose predict is shown next to them.")
    options = parser.parse_args(list(arguments[1:]))
    quiet()
    table = Table("source", box=None, pad_edge=False)
    for heading in ("n", "block efficiency", "draft acceptance", "accepted up to position 1, 2, ..."):
        table.add_column(heading, justify="right")
    logs = {file: read_engine_log(file, options.since) for file in options.files}
    for file, log in logs.items():
        _add(table, *_of_engine(file, log))
    for line in _of_run(Path(options.run)) if options.run else ():
        _add(table, *line)
    Console(soft_wrap=True).print(table)
    for file, log in logs.items():
        if log.note:
            print(f"{file}: {log.note}")
    print("95% bootstrap intervals over requests (an engine's) or prompts (ours); counters and logs allow none")
    if options.run:
        print("above T = 0 an engine's draft may have another temperature, top-k or top-p: compare T = 0 first")
    return 0


Line = tuple[str, str, Sequence[Estimate], Sequence[Estimate]]
"""A source, how many requests or prompts, estimates of `METRICS`, and of each position."""


def _add(table: Table, source: str, count: str, estimates: Sequence[Estimate], by_position: Sequence[Estimate]) -> None:
    table.add_row(source, count, *map(str, estimates), " ".join(one.point() for one in by_position) or "-")


def _of_engine(file: str, log: EngineLog) -> Line:
    """One file as a line."""
    pairs = [
        [(c.emitted, c.rounds) for c in log.counts if c.rounds],
        [(c.accepted, c.drafted) for c in log.counts if c.accepted is not None and c.drafted is not None],
    ]
    count = str(len(log.counts)) if log.per_request else "-"
    estimates = [_ratio(found, log.per_request) for found in pairs]
    return f"{file} ({log.kind})", count, estimates, _by_position(log.counts, log.per_request)


def _by_position(counts: Sequence[LoggedCounts], per_request: bool) -> list[Estimate]:
    """The share of the rounds that drafted in which each position was accepted."""
    told = [count for count in counts if count.drafting]
    longest = max((len(count.by_position) for count in told), default=0)
    reached = [count.by_position + (0.0,) * (longest - len(count.by_position)) for count in told]
    return [
        _ratio([(row[place], count.drafting) for row, count in zip(reached, told, strict=True)], per_request)
        for place in range(longest)
    ]


def _ratio(pairs: Sequence[tuple[float, float]], per_request: bool) -> Estimate:
    if not pairs:
        return Estimate.nothing()
    metric = ClusteredRatio()
    numerator_N, denominator_N = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    key_N = torch.arange(len(pairs)) if per_request else torch.zeros(len(pairs), dtype=torch.int64)
    metric.update(numerator_N, denominator_N, key_N)
    return metric.estimate()


def _of_run(run: Path) -> Iterator[Line]:
    """A line for every cell of a run's predict, plain decoding left out."""
    file = run / "predict" / "predictions.parquet"
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a run whose predict is finished")
    rows, notes = decoded_rows(file)
    for note in notes:
        print(f"{run}: {note}")
    drafted = [row for row in rows if row["pass"] == "acceptance" and row["verifier"] != BASELINE]
    for cell, found in SweepMetrics.of_rows(drafted).estimates().items():
        draft = "" if cell.draft_temperature == cell.target_temperature else f", draft T = {cell.draft_temperature:g}"
        source = f"{run}: {cell.verifier}, {cell.prompt_set}, T = {cell.target_temperature:g}{draft}"
        positions = [found[name] for name in found if name.startswith("joint_acceptance_")]
        yield source, str(found["block_efficiency"].prompts), [found[name] for name in METRICS], positions
