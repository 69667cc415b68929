"""The sections of a report: which figures and tables, from which numbers (floor 5)."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import Estimate, bootstrap_compute
from tempspec.metrics.decoding import SweepMetrics, compare
from tempspec.metrics.prefixes import prefix_split
from tempspec.metrics.ratio import to_estimate
from tempspec.metrics.rows import Cell, category_cell_of
from tempspec.reporting.answers import contrast
from tempspec.reporting.changes import changes
from tempspec.reporting.charts import Chart, bars, curves, forest, heatmap
from tempspec.reporting.runs import Collection, Draft
from tempspec.reporting.sheets import Field, Sheet

__all__ = ["Section", "sections"]

T = "target temperature T (1)"
_METRICS = {
    "acceptance_rate": ("acceptance rate", "acceptance rate (accepted / tested)", 0.0, 1.0),
    "block_efficiency": ("block efficiency", "block efficiency (tokens / target call)", 1.0, None),
    "speedup": ("speed-up", "speed-up (plain decoding = 1)", 0.0, None),
    "mbsu": ("MBSU", "memory-bound speed-up (plain = 1)", 0.0, None),
    "overhead_share": ("overhead", "share of seconds outside the models (1)", 0.0, 1.0),
}


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, figures and tables."""

    id: str
    title: str
    text: str
    charts: Sequence[Chart] = field(default_factory=list)
    sheets: Sequence[Sheet] = field(default_factory=list)


def sections(collection: Collection) -> list[Section]:
    """Every section that these runs have numbers for; provenance is the last."""
    made = [_decoding(collection), _speed(collection), _rounds(collection), _analytic(collection)]
    made += [_drafting(collection), _prefixes(collection), _differences(collection), _categories(collection)]
    return [section for section in made if section.charts or section.sheets] + [_provenance(collection)]


def _decoding(collection: Collection) -> Section:
    charts = list(_metric_charts(collection, "acceptance_rate", "block_efficiency"))
    rows: list[list[Field]] = [
        [draft.name, cell.prompt_set, cell.verifier, cell.target_temperature, cell.draft_temperature, *numbers]
        for draft in collection.drafts
        for cell, found in draft.estimates.items()
        if cell.verifier != BASELINE
        for numbers in [[found.get(metric, Estimate.nothing()) for metric in _METRICS]]
    ]
    columns = ["draft", "prompts", "verifier", "T", "draft T", *(words[0] for words in _METRICS.values())]
    sheets = [Sheet("decoding", "Speculative decoding", columns, rows)] if rows else []
    text = "Measured by decoding: how many drafted tokens stand, and how many tokens a target call yields."
    return Section("decoding", "Acceptance and block efficiency", text, charts, [*sheets, *_seed_sheets(collection)])


def _speed(collection: Collection) -> Section:
    charts = list(_metric_charts(collection, "speedup", "mbsu", "overhead_share"))
    text = "Wall clock against plain decoding in the same run, one request at a time; and where the time went."
    return Section("speed", "Speed", text, charts)


def _rounds(collection: Collection) -> Section:
    charts = []
    for draft, place, cells in _groups(collection):
        for metric, words in (
            ("conditional_acceptance", "acceptance by position"),
            ("accepted_length_share", "rounds"),
        ):
            found = {f"T = {cell.target_temperature:g}": _positions(draft, cell, metric) for cell in cells}
            name, title = _slug(metric, draft.name, place), f"{words.capitalize()}: {draft.name}, {place}"
            if metric == "conditional_acceptance":
                x, y = "position in the round (tokens)", "acceptance, earlier ones accepted (1)"
                charts.append(curves(name, title, found, x=x, y=y, top=1.0))
            else:
                title = title.replace("Rounds", "Accepted lengths")
                charts.append(bars(name, title, found, x="accepted length (tokens / round)", y="share of rounds (1)"))
    return Section("rounds", "Inside a round", "Acceptance by position, and how long the accepted runs are.", charts)


def _analytic(collection: Collection) -> Section:
    charts: list[Chart] = []
    entropy: dict[str, dict[str, dict[float, Estimate]]] = {}
    for draft in collection.drafts:
        for name in dict.fromkeys(key[0] for key in draft.analytic):
            found = {(k[2], k[3]): e for k, e in _analytic_estimates(draft, name, "analytic_acceptance").items()}
            best = [max((k for k in found if k[0] == t), key=lambda k: found[k].value) for t in {k[0] for k in found}]
            title = f"Analytic acceptance: {draft.name}, {name}"
            axes = {"x": T, "y": "draft temperature (1)", "mark": "best draft temperature"}
            charts.append(heatmap(_slug("map", draft.name, name), title, found, sorted(best), **axes))
            heat = {k[2]: e.value for k, e in _analytic_estimates(draft, name, "target_entropy").items()}
            points = {heat[t]: found[t, t] for t in heat if (t, t) in found}
            entropy.setdefault(name, {})[draft.name] = points
    for name, found_curves in entropy.items():
        x, y = "entropy of the target (nats)", "analytic acceptance (1)"
        charts.append(
            curves(_slug("entropy", name), f"Entropy against acceptance: {name}", found_curves, x=x, y=y, top=1.0)
        )
    return Section(
        "analytic",
        "Temperatures of target and draft",
        "From one forward pass of each model.",
        [*charts, *_trained(collection)],
    )


def _trained(collection: Collection) -> Iterator[Chart]:
    """Train temperature x decoding temperature, where two or more drafts differ in it."""
    drafts = {
        d.labels["train_temperature"]: d
        for d in reversed(collection.drafts)
        if isinstance(d.labels.get("train_temperature"), int | float)
    }
    if len(drafts) < 2:
        return
    for name in dict.fromkeys(key[0] for draft in drafts.values() for key in draft.analytic):
        found = {
            (key[2], float(heat)): estimate
            for heat, draft in drafts.items()
            for key, estimate in _analytic_estimates(draft, name, "analytic_acceptance").items()
            if key[2] == key[3]
        }
        diagonal = [key for key in found if key[0] == key[1]]
        axes = {"x": T, "y": "train temperature (1)", "mark": "equal temperatures"}
        yield heatmap(_slug("trained", name), f"Trained at, decoded at: {name}", found, diagonal, **axes)


def _drafting(collection: Collection) -> Section:
    charts = []
    for draft in collection.drafts:
        for name in dict.fromkeys(key[0] for key in draft.analytic):
            sums = draft.analytic_sums
            pairs = {
                k[2]: (k, (name, "argmax_acceptance", k[2], k[3]))
                for k in sums
                if k[:2] == (name, "analytic_acceptance") and k[2] == k[3] > 0
            }
            found = {f"T = {t:g}": contrast((1, sums[a]), (-1, sums[b])) for t, (a, b) in pairs.items() if b in sums}
            if found:
                title = f"Sampled minus argmax drafting: {draft.name}, {name}"
                charts.append(forest(_slug("argmax", draft.name, name), title, found, x="difference in acceptance (1)"))
    text = "What proposals sampled at the target's temperature gain over proposing the likeliest token, paired."
    return Section("drafting", "Sampled against argmax drafting", text, charts)


def _prefixes(collection: Collection) -> Section:
    charts, ref = [], collection.reference
    for draft in collection.drafts:
        for name, fixed in collection.prefixes.fixed.items():
            found: dict[str, Estimate] = {}
            for heat, sampled in collection.prefixes.sampled.get(name, {}).items():
                t, metric = float(heat), "analytic_acceptance"
                keys = [(fixed, metric, ref, ref), (fixed, metric, t, t), (sampled, metric, t, t)]
                if all(key in draft.analytic for key in keys):
                    split = prefix_split(*(draft.analytic[key] for key in keys))
                    found |= {f"T = {t:g}, laws": split.laws, f"T = {t:g}, prefixes": split.prefixes}
            if found:
                title = f"Fixed against sampled prefixes: {draft.name}, {name}"
                charts.append(forest(_slug("prefixes", draft.name, name), title, found, x="fall of acceptance (1)"))
    text = f"What acceptance loses from T = {ref:g}: because the laws differ, and because the prefixes do."
    return Section("prefixes", "Fixed against sampled prefixes", text, charts)


def _differences(collection: Collection) -> Section:
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
        bars_of = {
            f"{c.prompt_set}, {c.verifier}, T = {c.target_temperature:g}": m["block_efficiency"]
            for c, m in drafting.items()
            if c.draft_temperature == c.target_temperature
        }
        title = f"{draft.name} minus {decoded[0].name}"
        if bars_of:
            charts.append(
                forest(
                    _slug("difference", draft.name), title, bars_of, x="difference in block efficiency (tokens / call)"
                )
            )
    columns = ["draft", "prompts", "verifier", "T", "draft T", "acceptance rate", "block efficiency", "speed-up"]
    sheets = [Sheet("differences", f"Paired differences from {decoded[0].name}", columns, rows, True)] if rows else []
    return Section("differences", "Differences between drafts", "On the same prompts, paired.", charts, sheets)


def _categories(collection: Collection) -> Section:
    rows: list[list[Field]] = []
    for draft in collection.drafts:
        named = [row for row in draft.rows if row.get("category")]
        for cell, found in SweepMetrics.of_rows(named, cell=category_cell_of).estimates().items():
            if cell.verifier != BASELINE:
                place: list[Field] = [draft.name, cell.category, cell.prompt_set, cell.verifier]
                heat: list[Field] = [cell.target_temperature, cell.draft_temperature]
                rows.append([*place, *heat, found["acceptance_rate"], found["block_efficiency"]])
    columns = ["draft", "category", "prompts", "verifier", "T", "draft T", "acceptance rate", "block efficiency"]
    sheets = [Sheet("categories", "Results by category", columns, rows)] if rows else []
    return Section("categories", "Categories", "The prompts of one category alone.", [], sheets)


def _provenance(collection: Collection) -> Section:
    rows: list[list[Field]] = [
        [run.name, stage, name, str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for run in collection.runs
        for stage, environment in run.environments.items()
        for name, value in [*environment.items(), ("seed", run.configs[stage].get("seed_everything"))]
    ]
    sheets = [Sheet("provenance", "Versions, hardware, seeds, data digests", ["run", "stage", "fact", "value"], rows)]
    for stage in ("fit", "validate", "predict"):
        configs = {run.name: run.configs[stage] for run in collection.runs if run.configs.get(stage)}
        if len(configs) > 1 and (changed := changes(configs)):
            table: list[list[Field]] = [[name, *values] for name, values in changed.items()]
            sheets.append(
                Sheet(f"changes-{stage}", f"What changed in the configurations of {stage}", ["option", *configs], table)
            )
    return Section("provenance", "Provenance", "How these numbers came about.", [], sheets)


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
        title, y, bottom, top = _METRICS[metric]
        panels: dict[str, dict[str, dict[float, Estimate]]] = {}
        for draft, place, cells in _groups(collection):
            points = {cell.target_temperature: draft.estimates[cell].get(metric) for cell in cells}
            kept = {t: e for t, e in points.items() if e is not None and e.prompts}
            if kept:
                panels.setdefault(place, {})[draft.name] = kept
        for place, found in panels.items():
            heading = f"{title[0].upper()}{title[1:]}: {place}"
            yield curves(_slug(metric, place), heading, found, x=T, y=y, bottom=bottom, top=top)


def _groups(collection: Collection) -> Iterator[tuple[Draft, str, list[Cell]]]:
    """(draft, place, cells by temperature) for each prompt set, verifier and rule for the draft temperature."""
    for draft in collection.drafts:
        grouped: dict[str, list[Cell]] = {}
        for cell in sorted(draft.estimates):
            if cell.verifier != BASELINE:
                own = cell.draft_temperature != cell.target_temperature
                place = f"{cell.prompt_set}, {cell.verifier}" + (
                    f", draft T = {cell.draft_temperature:g}" if own else ""
                )
                grouped.setdefault(place, []).append(cell)
        for place, cells in grouped.items():
            yield draft, place, cells


def _positions(draft: Draft, cell: Cell, metric: str) -> dict[float, Estimate]:
    found = draft.estimates[cell]
    return {float(name.rpartition("_")[2]): e for name, e in found.items() if name.rpartition("_")[0] == metric}


def _analytic_estimates(draft: Draft, name: str, metric: str) -> dict[tuple[str, str, float, float], Estimate]:
    sums = {key: value for key, value in draft.analytic_sums.items() if key[:2] == (name, metric)}
    return {key: to_estimate(bootstrap_compute(value))[0] for key, value in sums.items()}


def _slug(*names: str) -> str:
    """A file name and an HTML id; a digest keeps names apart that look the same without their punctuation."""
    text = "-".join(names)
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
    return plain if plain == text else f"{plain}-{sum(ord(c) * (i + 1) for i, c in enumerate(text)) % 65536:04x}"
