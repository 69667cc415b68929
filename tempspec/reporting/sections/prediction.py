"""The sections about what was decoded (floor 5)."""

from collections.abc import Iterator, Sequence

import torch

from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import Estimate, bootstrap_compute
from tempspec.metrics.collection import SweepMetrics, compare
from tempspec.metrics.prefixes import PromptSums
from tempspec.metrics.ratio import to_estimate
from tempspec.metrics.rows import Cell, DecodedRow, category_cell_of, cell_of, timed_together
from tempspec.reporting.charts import Chart, bars, curves, forest
from tempspec.reporting.page_tables import Field, Sheet
from tempspec.reporting.runs import Collection, MeasuredDraft
from tempspec.reporting.sections.common import TEMPERATURE, Section, groups, slug

__all__ = ["categories", "decoding", "differences", "rounds", "speed"]

_METRICS = {
    "acceptance_rate": ("acceptance rate", "acceptance rate (accepted / tested)", 0.0, 1.0),
    "block_efficiency": ("block efficiency", "block efficiency (tokens / target call)", 1.0, None),
    "speedup": ("speed-up", "speed-up (plain decoding = 1)", 0.0, None),
    "mbsu": ("MBSU", "memory-bound speed-up (plain = 1)", 0.0, None),
    "overhead_share": ("overhead", "share of seconds outside the models", 0.0, 1.0),
}
_OF_LOSSY = {"total_variation_from_target": "TV from target", "kl_from_target": "KL from target (nats)"}
"""Columns of their own where a rule is lossy."""
_PARTS = ("prefill", "draft", "verify", "overhead")


def decoding(collection: Collection) -> Section:
    """Acceptance and block efficiency against temperature, and the table of all cells."""
    charts = list(_metric_charts(collection, "acceptance_rate", "block_efficiency"))
    found = [
        (draft, cell, estimates)
        for draft in collection.drafts
        for cell, estimates in draft.estimates.items()
        if cell.verifier != BASELINE
    ]
    heads = {metric: words[0] for metric, words in _METRICS.items()}
    heads |= {m: words for m, words in _OF_LOSSY.items() if any(m in e and e[m].prompts for *_, e in found)}
    rows: list[list[Field]] = [
        [draft.name, cell.prompt_set, cell.verifier, cell.target_temperature, cell.draft_temperature, *numbers]
        for draft, cell, estimates in found
        for numbers in [[estimates.get(metric, Estimate.nothing()) for metric in heads]]
    ]
    columns = ["draft", "prompts", "verifier", "T", "draft T", *heads.values()]
    sheets = [Sheet("decoding", "Speculative decoding", columns, rows)] if rows else []
    text = "Measured by decoding: how many drafted tokens are accepted, and how many tokens come of each target call."
    return Section("decoding", "Acceptance and block efficiency", text, charts, [*sheets, *_seed_sheets(collection)])


def speed(collection: Collection) -> Section:
    """Speed-up against temperature, and the time split."""
    found = {name for draft in collection.drafts for estimates in draft.estimates.values() for name in estimates}
    together = sorted((name for name in found if name.startswith("speedup_at_")), key=lambda name: (len(name), name))
    charts = [*_metric_charts(collection, "speedup", *together, "mbsu"), *_time_splits(collection)]
    text = (
        "Wall clock against plain decoding in the same run: one request at a time, or as many together as the chart "
        "says. Then how the time of one request is split."
    )
    return Section("speed", "Speed", text, charts)


def rounds(collection: Collection) -> Section:
    """Acceptance by position and accepted lengths."""
    charts = []
    for draft, place, cells in groups(collection.drafts):
        for metric, words in (
            ("conditional_acceptance", "acceptance by position"),
            ("accepted_length_share", "rounds"),
        ):
            found = {f"T = {cell.target_temperature:g}": _positions(draft, cell, metric) for cell in cells}
            name, title = slug(metric, draft.name, place), f"{words.capitalize()}: {draft.name}, {place}"
            if metric == "conditional_acceptance":
                x, y = "position in the round (tokens)", "acceptance, earlier ones accepted"
                charts.append(curves(name, title, found, x=x, y=y, top=1.0))
            else:
                title = title.replace("Rounds", "Accepted lengths")
                charts.append(bars(name, title, found, x="accepted length (tokens / round)", y="share of rounds"))
    return Section("rounds", "Inside a round", "Acceptance by position, and how long the accepted runs are.", charts)


def differences(collection: Collection) -> Section:
    """Each draft against the first, paired."""
    decoded = [draft for draft in collection.drafts if draft.rows]
    rows: list[list[Field]] = []
    charts = []
    for draft in decoded[1:]:
        found = compare(decoded[0].metrics, draft.metrics)
        drafting = {cell: metrics for cell, metrics in found.items() if cell.verifier != BASELINE}
        rows += [
            [
                draft.name,
                c.prompt_set,
                c.verifier,
                c.target_temperature,
                c.draft_temperature,
                *(metrics.get(m, Estimate.nothing()) for m in ("acceptance_rate", "block_efficiency", "speedup")),
            ]
            for c, metrics in drafting.items()
        ]
        for _, place, cells in groups([draft]):
            gains = {f"T = {c.target_temperature:g}": drafting[c]["block_efficiency"] for c in cells if c in drafting}
            if any(gain.prompts for gain in gains.values()):
                title = f"{draft.name} minus {decoded[0].name}: {place}"
                x = "difference in block efficiency (tokens / call)"
                charts.append(forest(slug("difference", draft.name, place), title, gains, x=x))
    columns = ["draft", "prompts", "verifier", "T", "draft T", "acceptance rate", "block efficiency", "speed-up"]
    sheets = [Sheet("differences", f"Paired differences from {decoded[0].name}", columns, rows, True)] if rows else []
    return Section("differences", "Differences between drafts", "On the same prompts, paired.", charts, sheets)


def categories(collection: Collection) -> Section:
    """The table of categories."""
    rows: list[list[Field]] = []
    for draft in collection.drafts:
        named = [row for row in draft.rows if row.get("category")]
        for cell, found in SweepMetrics.of_rows(named, cell=category_cell_of).estimates().items():
            if cell.verifier != BASELINE:
                place: list[Field] = [draft.name, cell.category, cell.prompt_set, cell.verifier]
                temperatures: list[Field] = [cell.target_temperature, cell.draft_temperature]
                rows.append([*place, *temperatures, found["acceptance_rate"], found["block_efficiency"]])
    columns = ["draft", "category", "prompts", "verifier", "T", "draft T", "acceptance rate", "block efficiency"]
    sheets = [Sheet("categories", "Results by category", columns, rows)] if rows else []
    return Section("categories", "Categories", "Only the prompts of one category.", [], sheets)


def _seed_sheets(collection: Collection) -> list[Sheet]:
    """Acceptance of every seed, where a draft has several: the spread that intervals over prompts leave out."""
    rows: list[list[Field]] = [
        [
            draft.name,
            seed,
            cell.prompt_set,
            cell.verifier,
            cell.target_temperature,
            cell.draft_temperature,
            found["acceptance_rate"],
        ]
        for draft in collection.drafts
        if len(draft.runs) > 1
        for seed, run in draft.runs.items()
        for cell, found in SweepMetrics.of_rows(run.rows).estimates().items()
        if cell.verifier != BASELINE
    ]
    columns = ["draft", "seed", "prompts", "verifier", "T", "draft T", "acceptance rate"]
    return [Sheet("seeds", "Each seed alone", columns, rows)] if rows else []


def _metric_charts(collection: Collection, *metrics: str) -> Iterator[Chart]:
    """A panel for each metric, prompt set and verifier, a curve a draft."""
    for metric in metrics:
        name, _, together = metric.partition("_at_")
        title, y, bottom, top = _METRICS[name]
        title += f", {together} together" if together else ""
        panels: dict[str, dict[str, dict[float, Estimate]]] = {}
        for draft, place, cells in groups(collection.drafts):
            points = {cell.target_temperature: draft.estimates[cell].get(metric) for cell in cells}
            kept = {t: e for t, e in points.items() if e is not None and e.prompts}
            if kept:
                panels.setdefault(place, {})[draft.name] = kept
        for place, found in panels.items():
            heading = f"{title[0].upper()}{title[1:]}: {place}"
            yield curves(slug(metric, place), heading, found, x=TEMPERATURE, y=y, bottom=bottom, top=top)


def _time_splits(collection: Collection) -> Iterator[Chart]:
    """Shares of the timing pass's seconds against temperature, a curve a part."""
    for draft, place, cells in groups(collection.drafts):
        found: dict[str, dict[float, Estimate]] = {}
        for cell in cells:
            timed = (row for row in draft.rows if row["pass"] == "timing" and timed_together(row) == 1)
            rows = [row for row in timed if cell_of(row) == cell]
            for part, estimate in zip(_PARTS, _time_split(rows), strict=False):
                found.setdefault(part, {})[cell.target_temperature] = estimate
        if found:
            title = f"Time split: {draft.name}, {place}"
            y = "share of seconds"
            yield curves(slug("time-split", draft.name, place), title, found, x=TEMPERATURE, y=y, top=1.0)


def _time_split(rows: Sequence[DecodedRow]) -> list[Estimate]:
    """The share of each part in all seconds of these rows; nothing without a row."""
    if not rows:
        return []
    seconds_N4 = torch.tensor(
        [
            [row["seconds_prefill"], row["seconds_draft"], row["seconds_verify"], row["seconds_overhead"]]
            for row in rows
        ],
        dtype=torch.float64,
    )
    key_N = torch.tensor([row["prompt_key"] for row in rows], dtype=torch.int64)
    sums = PromptSums.of(seconds_N4, seconds_N4.sum(1, keepdim=True).expand(-1, 4), key_N).sums()
    return to_estimate(bootstrap_compute(sums))


def _positions(draft: MeasuredDraft, cell: Cell, metric: str) -> dict[float, Estimate]:
    found = draft.estimates[cell]
    return {float(name.rpartition("_")[2]): e for name, e in found.items() if name.rpartition("_")[0] == metric}
