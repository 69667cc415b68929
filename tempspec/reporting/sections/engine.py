"""The section about a live engine: what it accepts beside ours, how fast it is, and what to draft there (floor 5)."""

from collections.abc import Iterator

from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.goodput import in_pairs, speeds_of, speedup
from tempspec.reporting.engine_record import advice_of, named_rules
from tempspec.reporting.page_tables import Field, Sheet
from tempspec.reporting.runs import Collection, MeasuredRun
from tempspec.reporting.sections.common import Section

__all__ = ["engine"]


def engine(collection: Collection) -> Section:
    """What `serve-check` has kept of each run's engine."""
    asked = [(run.name, run) for draft in collection.drafts for run in draft.runs.values() if run.engine]
    tables = (
        ("engine", "The engine next to ours", ("draft", "T", "figure", "engine", "ours", "difference"), _figures),
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
        "is assumed to cost something between a plain one and a timed one."
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
    for drafting, plain in in_pairs(speeds_of(run.engine.get("speeds", []))):
        alone, times = Estimate.nothing(), Estimate.nothing()
        if plain is not None:
            alone, times = plain.tokens_per_second(), speedup(drafting, plain)
        place: list[Field] = [drafting.temperature, str(drafting.concurrency), drafting.tokens_per_second()]
        yield [*place, alone, times, drafting.first_token()]


def _lengths(run: MeasuredRun) -> Iterator[list[Field]]:
    """The best length of each verifier that was decoded here, at each temperature and concurrency."""
    rules = named_rules(run.configs.get("predict", {}))
    for one in advice_of(run.engine, run.rows, rules):
        cell, gain = one.cell, one.gain
        place: list[Field] = [cell.prompt_set, cell.verifier, cell.target_temperature, cell.draft_temperature]
        yield [*place, str(one.concurrency), str(gain.drafted), gain.speedup]
