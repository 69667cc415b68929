"""What serve-check has kept of a run's engine, and what to draft in it (floor 5)."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tempspec.errors import UserError
from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import Sums
from tempspec.metrics.goodput import Advice, advised, in_pairs, speeds_of
from tempspec.metrics.parity import counted_row, tokens_per_round
from tempspec.metrics.rows import Cell, DecodedRow, cell_of

__all__ = ["TOKENWISE", "advice_of", "engine_record", "named_rules", "spoken"]

TOKENWISE = "TokenwiseRejection"
"""The rule of which a shorter draft accepts the beginning of what a longer one does."""


def engine_record(run: Path, measured: Mapping[str, str] | None) -> tuple[Mapping[str, Any], str]:
    """What serve-check has kept in a run, and a note where it is of another draft; nothing is then taken.

    Args:
        run: the run's folder.
        measured: the draft that predict has measured; None where it has measured none.

    Raises:
        UserError: the file is broken.
    """
    file = run / "serve-check" / "serve_check.json"
    if not file.is_file():
        return {}, ""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: expected JSON, got a broken file; run serve-check again") from error
    if not isinstance(held, Mapping):
        raise UserError(f"{file}: expected what serve-check has written, got something else; run serve-check again")
    if measured is not None and held.get("measured") != measured:
        return {}, f"{file.parent} is of another draft than predict: left out; run serve-check again"
    return held, ""


def advice_of(record: Mapping[str, Any], rows: Iterable[DecodedRow], rules: Mapping[str, str]) -> Iterator[Advice]:
    """How many tokens to draft in each cell that was decoded and each number of requests that was timed.

    Args:
        record: of `engine_record`.
        rows: of predict.
        rules: the class of each verifier, by its label.
    """
    pairs = list(in_pairs(speeds_of(record.get("speeds", []))))
    cells: dict[Cell, list[DecodedRow]] = {}
    for row in rows if pairs else ():
        if row["pass"] == "acceptance" and row["verifier"] != BASELINE:
            cells.setdefault(cell_of(row), []).append(row)
    tokens = {cell: _tokens(members, rules.get(cell.verifier, cell.verifier)) for cell, members in cells.items()}
    yield from advised(tokens, pairs)


def _tokens(rows: list[DecodedRow], rule: str) -> Sums:
    longest = max(max(row["drafted"], default=0) for row in rows)
    return tokens_per_round([counted_row(row, longest) for row in rows], tokenwise=rule == TOKENWISE)


def named_rules(config: Mapping[str, Any]) -> dict[str, str]:
    """The class of each verifier by its label, as a configuration says it.

    >>> named_rules({"model": {"verifiers": {"a": "TokenwiseRejection", "b": {"class_path": "x.y.Typical"}}}})
    {'a': 'TokenwiseRejection', 'b': 'Typical'}
    """
    named = (config.get("model") or {}).get("verifiers") or {}
    paths = {label: said.get("class_path", "") if isinstance(said, Mapping) else said for label, said in named.items()}
    return {label: str(path).rpartition(".")[2] for label, path in paths.items()}


def spoken(kind: str, found: Iterable[Advice]) -> Iterator[str]:
    """A line for each prompt set, temperature and number of requests: the verifier and length that gain most.

    Args:
        kind: of the engine.
        found: of `advice_of`.
    """
    best: dict[tuple[str, float, int], Advice] = {}
    for one in found:
        place = (one.cell.prompt_set, one.cell.target_temperature, one.concurrency)
        if place not in best or one.gain.speedup.value > best[place].gain.speedup.value:
            best[place] = one
    for (prompts, temperature, concurrency), one in sorted(best.items()):
        how = f"{one.cell.verifier}, draft T = {one.cell.draft_temperature:g}, " if one.gain.drafted else ""
        yield f"in {kind}: {prompts}, T = {temperature:g}, {concurrency} in flight: {how}{one.gain}"
