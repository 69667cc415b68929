"""The section about a live engine: what it accepts beside ours, how fast it is, and what to draft there (floor 5)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import Estimate, Sums
from tempspec.metrics.goodput import Speed, best, gains, speeds_of, speedup
from tempspec.metrics.parity import counted_row, tokens_per_round
from tempspec.metrics.rows import Cell, DecodedRow, cell_of
from tempspec.reporting.page_tables import Field, Sheet
from tempspec.reporting.runs import Collection, MeasuredRun
from tempspec.reporting.sections.common import Section

__all__ = ["engine"]

_TOKEN_BY_TOKEN = "TokenwiseRejection"
"""The rule of which a shorter draft accepts the beginning of what a longer one does."""

Pair = tuple[Speed, Speed | None]
"""With a draft, and without."""


def engine(collection: Collection) -> Section:
    """What `serve-check` has kept of each run's engine."""
    asked = [(run.name, run) for draft in collection.drafts for run in draft.runs.values() if run.engine]
    tables = (
        ("engine", "The engine beside ours", ("draft", "T", "figure", "engine", "ours", "difference"), _figures),
        ("engine-findings", "What serve-check found", ("draft", "about", "finding"), _findings),
        ("engine-speed", "Speed of the engine", _SPEED, _speeds),
        ("engine-length", "What to draft in this engine", _LENGTH, _lengths),
    )
    sheets = []
    for name, title, columns, of in tables:
        rows = [[draft, *row] for draft, run in asked for row in of(run)]
        sheets += [Sheet(name, title, columns, rows)] if rows else []
    text = (
        "What `tempspec serve-check` saw of a live engine on the same prompts. A round of fewer tokens than were timed "
        "is taken to cost in between a plain one and a timed one."
    )
    return Section("engine", "A live engine", text, [], sheets)


_SPEED = ("draft", "T", "requests in flight", "tokens/s", "without a draft", "speed-up", "first token (s)")
_LENGTH = ("draft", "prompts", "verifier", "T", "draft T", "requests in flight", "draft so many", "speed-up")


def _figures(run: MeasuredRun) -> Iterator[list[Field]]:
    for finding in run.engine.get("findings", []):
        for line in finding["lines"]:
            theirs, ours, difference = (Estimate(**line[name]) for name in ("theirs", "ours", "difference"))
            yield [str(finding["about"]).removeprefix("T = "), line["name"], theirs, ours, f"{difference:+}"]


def _findings(run: MeasuredRun) -> Iterator[list[Field]]:
    yield from ([finding["about"], finding["says"]] for finding in run.engine.get("findings", []))


def _speeds(run: MeasuredRun) -> Iterator[list[Field]]:
    for drafting, plain in _pairs(run.engine):
        alone, times = Estimate.nothing(), Estimate.nothing()
        if plain is not None:
            alone, times = plain.tokens_per_second(), speedup(drafting, plain)
        place: list[Field] = [drafting.temperature, str(drafting.concurrency), drafting.tokens_per_second()]
        yield [*place, alone, times, drafting.first_token()]


def _lengths(run: MeasuredRun) -> Iterator[list[Field]]:
    """The best length of each verifier that was decoded here, at each temperature and concurrency."""
    pairs = list(_pairs(run.engine))
    for cell, rows in _cells(run).items():
        tokens = _tokens(rows, _is_tokenwise(run, cell.verifier))
        for drafting, plain in pairs:
            if plain is not None and drafting.temperature == cell.target_temperature:
                gain = best(gains(tokens, drafting, plain))
                place: list[Field] = [cell.prompt_set, cell.verifier, cell.target_temperature, cell.draft_temperature]
                yield [*place, str(drafting.concurrency), str(gain.drafted), gain.speedup]


def _pairs(engine: Mapping[str, Any]) -> Iterator[Pair]:
    """Each timing with a draft, and that without at the same temperature and concurrency."""
    speeds = speeds_of(engine.get("speeds", []))
    plain = {(one.temperature, one.concurrency): one for one in speeds if not one.drafted}
    yield from ((one, plain.get((one.temperature, one.concurrency))) for one in speeds if one.drafted)


def _cells(run: MeasuredRun) -> dict[Cell, list[DecodedRow]]:
    found: dict[Cell, list[DecodedRow]] = {}
    for row in run.rows:
        if row["pass"] == "acceptance" and row["verifier"] != BASELINE:
            found.setdefault(cell_of(row), []).append(row)
    return found


def _tokens(rows: list[DecodedRow], tokenwise: bool) -> Sums:
    """Tokens of a round that drafts 1..K; of a rule that looks at the whole draft, of the longest alone."""
    longest = max(max(row["drafted"], default=0) for row in rows)
    found = tokens_per_round([counted_row(row, longest) for row in rows])
    if not tokenwise:
        found.numerator_SW[:-1] = torch.nan
    return found


def _is_tokenwise(run: MeasuredRun, label: str) -> bool:
    """Whether a label of the sweep is of the rule that decides token by token, by the configuration of predict."""
    named = run.configs.get("predict", {}).get("model", {}).get("verifiers") or {}
    said = named.get(label, label) if isinstance(named, Mapping) else label
    path = said.get("class_path", "") if isinstance(said, Mapping) else said
    return str(path).rpartition(".")[2] == _TOKEN_BY_TOKEN
