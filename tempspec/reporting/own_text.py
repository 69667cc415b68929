"""Acceptance of drafts on the target's own text, seed by seed, and against one of the drafts (floor 5).

T is the temperature of decoding, of proposing, and of the text that acceptance is measured on. Tokens of all prompt
sets of a domain count alike, and those of all seeds.

Axes: U prompts, S = 1 entry.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tempspec.errors import UserError
from tempspec.metrics.bootstrap import Estimate, bootstrap_compute, difference_estimate
from tempspec.metrics.prefixes import PromptSums
from tempspec.metrics.ratio import to_estimate
from tempspec.reporting.answers import shown
from tempspec.reporting.page_tables import Noted
from tempspec.reporting.runs import Collection, MeasuredDraft, MeasuredRun

__all__ = ["DraftLine", "OwnText", "own_texts"]

METRIC = "analytic_acceptance"
_DOMAINS = {"in": "in the domain", "out": "out of the domain", "": "of no domain"}


@dataclass(frozen=True)
class DraftLine:
    """One draft.

    Attributes:
        name: the draft's.
        seeds: `3 seeds`, or `2 of 3 seeds` where the others are not measured yet.
        at: what was found, by temperature; a temperature without a measurement is left out.
    """

    name: str
    seeds: str
    at: Mapping[float, Noted]


@dataclass(frozen=True)
class OwnText:
    """The drafts on the texts of one domain.

    Attributes:
        domain: in words; empty where all prompt sets are of one.
        temperatures: T, ascending.
        acceptance: each measured draft, with the values of its single seeds as notes.
        against: the draft that the others are compared with.
        differences: each other draft that shares a seed with it, paired by prompt on the seeds that both have; the
            notes say in how many of these the difference has the same sign, and whether it is shown.
        unmeasured: drafts without a measurement.
    """

    domain: str
    temperatures: Sequence[float]
    acceptance: Sequence[DraftLine]
    against: str
    differences: Sequence[DraftLine]
    unmeasured: Sequence[str]


def own_texts(collection: Collection) -> list[OwnText]:
    """The drafts on the target's own texts, for each domain; empty where nothing was measured on such a text.

    Raises:
        UserError: the draft to compare with is named, and was not measured on them.
    """
    domains: dict[str, dict[float, list[str]]] = {}
    for prompts, texts in collection.prefixes.sampled.items():
        by_temperature = domains.setdefault(collection.domains.get(prompts, ""), {})
        for temperature, text in texts.items():
            by_temperature.setdefault(float(temperature), []).append(text)
    found = [
        _of_domain(collection, _DOMAINS[domain] if len(domains) > 1 else "", texts)
        for domain, texts in domains.items()
        if any(_seeds(draft, texts) for draft in collection.drafts)
    ]
    if collection.against and not found:
        raise UserError(
            f"--against {collection.against}: expected drafts that were measured on the target's own text, got none; "
            "leave it out, or run the study's validate"
        )
    return found


def _of_domain(collection: Collection, domain: str, texts: Mapping[float, Sequence[str]]) -> OwnText:
    runs = {draft.name: _seeds(draft, texts) for draft in collection.drafts}
    measured = [draft for draft in collection.drafts if runs[draft.name]]
    against = _against(collection, measured)
    temperatures = sorted({t for draft in measured for run in runs[draft.name].values() for t in run})
    acceptance = [
        DraftLine(draft.name, _counted(len(runs[draft.name]), draft.planned), _acceptance(runs[draft.name]))
        for draft in measured
    ]
    unmeasured = [draft.name for draft in collection.drafts if not runs[draft.name]]
    differences = [*_differences(measured, runs, against)]
    return OwnText(domain, temperatures, acceptance, against, differences, [*unmeasured, *collection.missing])


_Seed = Mapping[float, PromptSums]
"""What was counted with one seed, by temperature."""


def _seeds(draft: MeasuredDraft, texts: Mapping[float, Sequence[str]]) -> dict[str, _Seed]:
    """A draft's measured seeds."""
    found = {seed: dict(_counts(run, texts)) for seed, run in draft.runs.items()}
    return {seed: counts for seed, counts in found.items() if counts}


def _counts(run: MeasuredRun, texts: Mapping[float, Sequence[str]]) -> Iterator[tuple[float, PromptSums]]:
    for temperature, names in texts.items():
        keys = [(name, METRIC, temperature, temperature) for name in names]
        if parts := [run.analytic[key] for key in keys if key in run.analytic]:
            yield temperature, PromptSums.joined(parts)


def _acceptance(seeds: Mapping[str, _Seed]) -> dict[float, Noted]:
    """All seeds together, and each alone."""
    return {
        t: Noted(
            _estimate(held := [counts[t] for counts in seeds.values() if t in counts]), " ".join(map(_point, held))
        )
        for t in sorted({t for counts in seeds.values() for t in counts})
    }


def _differences(
    measured: Sequence[MeasuredDraft], runs: Mapping[str, Mapping[str, _Seed]], against: str
) -> Iterator[DraftLine]:
    """Every other draft against one, on the seeds that both have."""
    other = runs[against]
    for draft in measured:
        seeds = [seed for seed in runs[draft.name] if seed in other and draft.name != against]
        at = {
            t: _difference([(runs[draft.name][seed][t], other[seed][t]) for seed in held])
            for t in sorted({t for seed in seeds for t in runs[draft.name][seed]})
            if (held := [seed for seed in seeds if t in runs[draft.name][seed] and t in other[seed]])
        }
        if at:
            yield DraftLine(draft.name, _counted(len(seeds), draft.planned), at)


def _difference(pairs: Sequence[tuple[PromptSums, PromptSums]]) -> Noted:
    """The first of each pair minus the second, over the prompts that both have."""
    common = [_paired(*pair) for pair in pairs]
    here, there = (PromptSums.joined(side).sums() for side in zip(*common, strict=True))
    (change,) = to_estimate(difference_estimate(here, there))
    same = sum((_value(a) - _value(b)) * change.value > 0 for a, b in common)
    signs = f"{same} of {len(pairs)}"
    return Noted(change, signs if shown(change) and same == len(pairs) else f"not shown, {signs}")


def _paired(a: PromptSums, b: PromptSums) -> tuple[PromptSums, PromptSums]:
    return a.only(b.key_U), b.only(a.key_U)


def _estimate(parts: Sequence[PromptSums]) -> Estimate:
    (estimate,) = to_estimate(bootstrap_compute(PromptSums.joined(parts).sums()))
    return estimate


def _value(counts: PromptSums) -> float:
    return float(counts.numerator_US.sum() / counts.denominator_US.sum())


def _point(counts: PromptSums) -> str:
    return Estimate(_value(counts), math.nan, math.nan, len(counts.key_U)).point()


def _counted(measured: int, planned: int) -> str:
    """How many seeds are measured, and of how many.

    >>> _counted(3, 3), _counted(1, 3), _counted(1, 1)
    ('3 seeds', '1 of 3 seeds', '1 seed')
    """
    return f"{measured} of {planned} seeds" if measured < planned else f"{measured} seed{'s' if measured > 1 else ''}"


def _against(collection: Collection, measured: Sequence[MeasuredDraft]) -> str:
    """The draft that is named; else the first whose text and loss are of the reference temperature; else the first.

    Raises:
        UserError: the one that is named was not measured.
    """
    names = [draft.name for draft in measured]
    if collection.against and collection.against not in names:
        raise UserError(
            f"--against expected a draft that was measured on the target's own text, one of {', '.join(names)}, "
            f"got {collection.against!r}"
        )
    labels = ("train_temperature", "generation_temperature")
    alike = [d.name for d in measured if all(d.labels.get(label) == collection.reference for label in labels)]
    return collection.against or (alike or names)[0]
