"""Finished runs and studies, read for a report (floor 5).

A stage that is not finished is left out with a note; a file that cannot be read is an error.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tempspec.errors import UserError
from tempspec.metrics.bootstrap import Sums
from tempspec.metrics.collection import SweepMetrics
from tempspec.metrics.prefixes import PromptSums
from tempspec.metrics.rows import DecodedRow, cell_of
from tempspec.metrics.timing import places_of
from tempspec.own_yaml import read_own_yaml
from tempspec.reporting.decoded_rows import decoded_rows, parquet_rows
from tempspec.reporting.engine_record import engine_record
from tempspec.reporting.measured import MEASURING, fit_of_measured, measured_draft, of_other_drafts, of_unknown_drafts
from tempspec.reporting.records import Estimates, first_token_text
from tempspec.reporting.study_index import FILE as STUDY_FILE
from tempspec.reporting.study_index import Prefixes, read_study

__all__ = ["SAMPLED", "Analytic", "AnalyticKey", "Collection", "MeasuredDraft", "MeasuredRun", "collect", "read_run"]

STAGES = {
    "fit": "config.yaml",
    "generate": "generated.parquet",
    "validate": "metrics.json",
    "predict": "predictions.parquet",
}
"""Each stage and the file that says that it came to an end (fit: that it began)."""
_TEMPERATURES = {"train_temperature", "generation_temperature"}

SAMPLED = "sampled at T"
"""What the name of a text that the target wrote ends with."""
AnalyticKey = tuple[str, str, float, float]
"""(prompt set, metric, target temperature, draft temperature)."""
_KEY = ("prompt_set", "metric", "target_temperature", "draft_temperature")
Analytic = dict[tuple[str, float, float], Sums]
"""(metric, target temperature, draft temperature) -> what its interval is computed from."""


@dataclass(frozen=True)
class MeasuredRun:
    """One run folder.

    Attributes:
        name: what to call it.
        folder: where it is.
        configs: `config.yaml` by stage.
        environments: `environment.json` by stage.
        rows: of predict.
        analytic_rows: of validate; see `tempspec.reporting.records.prompt_rows`.
        later_rows: those of a head's second drafted token and of each after it, on the texts of a study.
        parameter_ratio: the draft's parameters over the target's, where predict says so.
        fitted: pairs of temperatures (target, draft) that validate found for `draft_temperatures: fitted`.
        notes: what was left out.
        engine: what serve-check has kept of a live engine with the same draft.
    """

    name: str
    folder: Path
    configs: Mapping[str, Mapping[str, Any]]
    environments: Mapping[str, Mapping[str, Any]]
    rows: Sequence[DecodedRow] = ()
    analytic_rows: Sequence[Mapping[str, Any]] = ()
    later_rows: Sequence[Mapping[str, Any]] = ()
    parameter_ratio: float | None = None
    fitted: Sequence[tuple[float, float]] = ()
    notes: Sequence[str] = ()
    engine: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def analytic(self) -> Mapping[AnalyticKey, PromptSums]:
        """Each prompt's analytic sums by cell and metric."""
        return PromptSums.by(_KEY, self.analytic_rows)

    @cached_property
    def later(self) -> Mapping[AnalyticKey, PromptSums]:
        """The same of `later_rows`, under names such as `TEXT/2`."""
        return PromptSums.by(_KEY, self.later_rows)


@dataclass(frozen=True)
class MeasuredDraft:
    """One draft, with one run per seed; estimates pool the seeds, and resample prompts.

    Attributes:
        name: what to call it.
        labels: how it differs from the others; see `tempspec.reporting.study_index`.
        runs: by seed.
        planned: how many seeds its study asks for; 0 where there is no study.
    """

    name: str
    labels: Mapping[str, Any]
    runs: Mapping[str, MeasuredRun]
    planned: int = 0

    @property
    def trained(self) -> tuple[float, float] | None:
        """The least and the largest temperature that it was trained at, where its label says so."""
        try:
            ends = [float(end) for end in str(self.labels.get("train_temperature")).split(" to ")]
        except ValueError:
            return None
        return min(ends), max(ends)

    @cached_property
    def metrics(self) -> SweepMetrics:
        """The decoding metrics of all seeds' rows."""
        ratios = [run.parameter_ratio for run in self.runs.values() if run.rows]
        ratio = ratios[0] if len(set(ratios)) == 1 else None
        return SweepMetrics.of_rows(self.rows, parameter_ratio=ratio)

    @cached_property
    def estimates(self) -> Estimates:
        """Their estimates by cell."""
        return self.metrics.estimates()

    @property
    def rows(self) -> list[DecodedRow]:
        """The rows of all seeds."""
        return [row for run in self.runs.values() for row in run.rows]

    @property
    def fitted(self) -> set[tuple[float, float]]:
        """The pairs of temperatures that were fitted."""
        return {pair for run in self.runs.values() for pair in run.fitted}

    @cached_property
    def analytic(self) -> Mapping[AnalyticKey, PromptSums]:
        """Each prompt's analytic sums by cell and metric, over all seeds."""
        grouped: dict[AnalyticKey, list[PromptSums]] = {}
        for run in self.runs.values():
            for key, sums in run.analytic.items():
                grouped.setdefault(key, []).append(sums)
        return {key: PromptSums.joined(parts) for key, parts in grouped.items()}

    @cached_property
    def analytic_sums(self) -> Mapping[AnalyticKey, Sums]:
        """What intervals of the analytic metrics are computed from."""
        return {key: sums.sums() for key, sums in self.analytic.items()}


@dataclass(frozen=True)
class Collection:
    """All that one report is made from.

    Attributes:
        title: what to call it.
        drafts: in the order in which to show them; the first is the one that others are compared with.
        domains: `in` or `out` by prompt set, where known.
        reference: the temperature that falls are counted from.
        prefixes: see `tempspec.reporting.study_index.Prefixes`.
        notes: what was left out, and other warnings.
        missing: drafts of a study that have no run folder yet.
        against: the draft that acceptance on the target's own text is compared with; chosen by labels where empty.
    """

    title: str
    drafts: Sequence[MeasuredDraft]
    domains: Mapping[str, str] = field(default_factory=dict)
    reference: float = 1.0
    prefixes: Prefixes = field(default_factory=Prefixes)
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()
    against: str = ""

    @property
    def runs(self) -> list[MeasuredRun]:
        """Every run of every draft."""
        return [run for draft in self.drafts for run in draft.runs.values()]

    @cached_property
    def trained_at(self) -> Mapping[float, MeasuredDraft]:
        """Drafts by the one temperature of their loss: the first two or more that differ in no other label.

        The temperature of their text may differ with it. Where another label does, an objective or a rank, what
        separates two drafts is not their temperature; empty where that is so for all.
        """
        alike: dict[frozenset[tuple[str, Any]], dict[float, MeasuredDraft]] = {}
        for draft in self.drafts:
            temperature = draft.labels.get("train_temperature")
            if isinstance(temperature, int | float) and (draft.rows or draft.analytic):
                rest = frozenset((name, label) for name, label in draft.labels.items() if name not in _TEMPERATURES)
                alike.setdefault(rest, {}).setdefault(float(temperature), draft)
        return next((drafts for drafts in alike.values() if len(drafts) > 1), {})

    def texts(self, draft: MeasuredDraft) -> dict[str, Analytic]:
        """A draft's analytic sums by the text that they were measured on.

        Of a study: each prompt set's fixed text, and what the target wrote, where each T is measured on text of that T.
        """
        places: dict[str, list[tuple[str, float | None]]] = {}
        for prompts, name in self.prefixes.fixed.items():
            places.setdefault(name, []).append((f"{prompts}, fixed text", None))
        for prompts, sets in self.prefixes.sampled.items():
            for temperature, name in sets.items():
                places.setdefault(name, []).append((f"{prompts}, {SAMPLED}", float(temperature)))
        found: dict[str, Analytic] = {text: {} for names in places.values() for text, _ in names}
        for (name, metric, target, own), sums in draft.analytic_sums.items():
            for text, only in places.get(name, [(name, None)]):
                if only is None or only == target:
                    found.setdefault(text, {})[metric, target, own] = sums
        return {text: sums for text, sums in found.items() if sums}


def collect(folders: Sequence[str | Path], against: str = "") -> Collection:
    """Read run folders and studies.

    Args:
        folders: at least one.
        against: see `Collection`.

    Raises:
        UserError: a folder is missing, holds no finished run, or a file in it cannot be read.
    """
    paths = [Path(folder) for folder in folders]
    parts = [_study(path) if (path / STUDY_FILE).is_file() else _single(path, paths) for path in paths]
    merged = Collection(
        title=", ".join(part.title for part in parts),
        drafts=_unique([draft for part in parts for draft in part.drafts]),
        domains=_domains(parts),
        reference=next((part.reference for part in parts if part.prefixes.fixed), parts[0].reference),
        prefixes=Prefixes(
            {name: text for part in parts for name, text in part.prefixes.fixed.items()},
            {name: texts for part in parts for name, texts in part.prefixes.sampled.items()},
        ),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        missing=[name for part in parts for name in part.missing],
        against=against,
    )
    if not any(run.rows or run.analytic_rows for run in merged.runs):
        reasons = "; ".join(note for note in merged.notes if "left out" in note)
        raise UserError(
            f"{', '.join(map(str, paths))}: expected a finished validate or predict, got none; "
            + (reasons or "run `tempspec validate` or `tempspec predict` first")
        )
    more = [*_conflicts(parts, merged), *_version_notes(merged.runs), *_machine_notes(merged.runs)]
    return replace(merged, notes=[*merged.notes, *more])


def read_run(folder: Path, name: str = "") -> MeasuredRun:
    """Read one run folder.

    Raises:
        UserError: no such folder, no stage in it, or a broken file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a run folder, got no folder; check the path")
    begun = [stage for stage in STAGES if (folder / stage).is_dir()]
    if not begun:
        raise UserError(f"{folder}: expected a run folder with {', '.join(STAGES)}, got none of these{_inside(folder)}")
    finished = [stage for stage in begun if (folder / stage / STAGES[stage]).is_file()]
    notes = [f"{folder / stage} is not finished: left out" for stage in begun if stage not in finished]
    configs = {stage: _optional(folder / stage / "config.yaml", read_own_yaml) for stage in begun}
    others = of_other_drafts(folder, [stage for stage in MEASURING if stage in finished], configs)
    finished = [stage for stage in finished if stage not in others]
    notes += others.values()
    rows: Sequence[DecodedRow] = ()
    analytic: list[Any] = []
    facts: Mapping[str, Any] = {}
    fits: Mapping[str, Any] = {}
    if "predict" in finished:
        rows, former = decoded_rows(folder / "predict" / "predictions.parquet")
        notes += former
        facts = _optional(folder / "predict" / "metrics.json", json.loads)
    if "validate" not in others:
        fits = _optional(folder / "validate" / "draft_temperatures.json", json.loads)
    if "validate" in finished and (folder / "validate" / "acceptance.parquet").is_file():
        analytic = parquet_rows(folder / "validate" / "acceptance.parquet", {"metric", "numerator", "denominator"})
    elif "validate" in finished:
        notes.append(f"{folder / 'validate'} has no acceptance.parquet: left out; run validate again")
    kept = [stage for stage in begun if stage not in others]
    engine, other = engine_record(folder, measured_draft(folder / "predict") if "predict" in begun else None)
    notes += [other] if other else []
    return MeasuredRun(
        name=name or _clean(folder.resolve().name),
        folder=folder,
        configs={stage: configs[stage] for stage in kept},
        environments={stage: _optional(folder / stage / "environment.json", json.loads) for stage in kept},
        rows=rows,
        analytic_rows=analytic,
        parameter_ratio=facts.get("parameter_ratio"),
        fitted=[(fit["target_temperature"], fit["draft_temperature"]) for fit in fits.get("fits", [])],
        engine=engine,
        notes=[
            *notes,
            *of_unknown_drafts(folder, [stage for stage in MEASURING if stage in finished], configs),
            *(f"{folder / 'predict'}: {note}" for note in places_of((cell_of(row), row) for row in rows).notes()),
        ],
    )


def _study(path: Path) -> Collection:
    index = read_study(path)
    shown = {
        *index.prefixes.fixed.values(),
        *(name for sets in index.prefixes.sampled.values() for name in sets.values()),
    }
    drafts: list[MeasuredDraft] = []
    notes: list[str] = []
    absent: list[str] = []
    for name, draft in index.drafts.items():
        runs = {}
        for seed, place in draft.seeds.items():
            if (path / place).is_dir():
                run = read_run(path / place, _clean(f"{name}, seed {seed}"))
                runs[seed] = replace(
                    run,
                    analytic_rows=[row for row in run.analytic_rows if row["prompt_set"] in shown],
                    later_rows=[row for row in run.analytic_rows if first_token_text(row["prompt_set"]) in shown],
                )
                notes += runs[seed].notes
            else:
                absent.append(Path(place).name)
        if runs:
            drafts.append(MeasuredDraft(_clean(name), draft.labels, runs, planned=len(draft.seeds)))
    if absent:
        planned = sum(len(draft.seeds) for draft in index.drafts.values())
        notes.append(f"{len(absent)} of {planned} runs are not there yet: {', '.join(absent)} left out")
    if index.status.done < index.status.total:
        notes.append(f"the study is not finished: {index.status.done} of {index.status.total} cells")
    domains = {name: facts["domain"] for name, facts in index.prompt_sets.items() if "domain" in facts}
    missing = [name for name in map(_clean, index.drafts) if name not in {draft.name for draft in drafts}]
    return Collection(_clean(index.name), drafts, domains, index.reference_temperature, index.prefixes, notes, missing)


def _single(path: Path, beside: Sequence[Path]) -> Collection:
    names = [other.resolve().name for other in beside]
    own = path.resolve()
    run = read_run(path, _clean(own.name if names.count(own.name) == 1 else f"{own.parent.name}/{own.name}"))
    return Collection(run.name, [MeasuredDraft(run.name, _labels(run), {"": run})], notes=run.notes)


def _labels(run: MeasuredRun) -> dict[str, Any]:
    """What the fit of the measured draft says: its objective, and the temperature where that is constant or uniform."""
    model = fit_of_measured(run.folder, run.configs).get("model") or {}
    schedule, labels = model.get("temperature"), {"divergence": json.dumps(model.get("divergence"), sort_keys=True)}
    if isinstance(schedule, int | float):
        return labels | {"train_temperature": float(schedule)}
    if not isinstance(schedule, Mapping):
        return {}
    kind, given = str(schedule.get("class_path", "")).rpartition(".")[2], schedule.get("init_args") or {}
    if kind == "Constant":
        return labels | {"train_temperature": float(given.get("temperature", 1.0))}
    return labels | {"train_temperature": f"{given['low']:g} to {given['high']:g}"} if kind == "Uniform" else {}


def _unique(drafts: Sequence[MeasuredDraft]) -> list[MeasuredDraft]:
    """Drafts and runs with names of their own: a later one of the same name is numbered."""
    seen: dict[str, int] = {}
    named = []
    for draft in drafts:
        seen[draft.name] = seen.get(draft.name, 0) + 1
        tail = "" if seen[draft.name] == 1 else f" ({seen[draft.name]})"
        runs = {seed: replace(run, name=run.name + tail) for seed, run in draft.runs.items()}
        named.append(replace(draft, name=draft.name + tail, runs=runs))
    return named


def _domains(parts: Sequence[Collection]) -> dict[str, str]:
    """The domain of each prompt set that no two studies disagree about."""
    found = {(name, domain) for part in parts for name, domain in part.domains.items()}
    names = [name for name, _ in found]
    return {name: domain for name, domain in sorted(found) if names.count(name) == 1}


def _conflicts(parts: Sequence[Collection], merged: Collection) -> list[str]:
    """What studies that are read together disagree about."""
    notes = [
        f"{part.title} counts falls from T = {part.reference:g}, here they are counted from {merged.reference:g}"
        for part in parts
        if part.prefixes.fixed and part.reference != merged.reference
    ]
    torn = sorted({name for part in parts for name in part.domains if name not in merged.domains})
    return notes + [f"{name} is in the domain of one study and out of another's: counted as neither" for name in torn]


def _version_notes(runs: Sequence[MeasuredRun]) -> list[str]:
    found = {
        environment["versions"].get("tempspec", "unknown")
        for run in runs
        for environment in run.environments.values()
        if isinstance(environment.get("versions"), Mapping)
    }
    return [f"made with different versions of tempspec: {', '.join(sorted(found))}"] if len(found) > 1 else []


def _machine_notes(runs: Sequence[MeasuredRun]) -> list[str]:
    """Where the speeds of different runs are of different machines."""
    found = {run.name: places_of((cell_of(row), row) for row in run.rows).machines for run in runs}
    several = {name: machines for name, machines in found.items() if machines}
    if len(set(map(tuple, several.values()))) < 2:
        return []
    each = "; ".join(f"{name}: {', '.join(machines)}" for name, machines in several.items())
    return [f"timed on different machines ({each}): their tokens/s cannot be compared"]


def _inside(folder: Path) -> str:
    """A hint at the runs one folder further down."""
    inner = [child for child in sorted(folder.iterdir()) if any((child / stage).is_dir() for stage in STAGES)]
    return f"; did you mean {' '.join(map(str, inner))}?" if inner else "; name a folder that a subcommand left"


def _optional(file: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    """A mapping from a file; empty where there is none.

    Raises:
        UserError: the file is not what it should be.
    """
    try:
        held = parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: expected {file.suffix[1:].upper()}, got a broken file; run the stage again"
        ) from error
    if not isinstance(held, Mapping):
        raise UserError(f"{file}: expected a mapping, got {type(held).__name__}; run the stage again")
    return held


def _clean(name: str) -> str:
    """A name without control characters."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
