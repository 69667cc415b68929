"""Acceptance of drafts on the target's own text, seed by seed, and against one of the drafts (floor 5).

T is the temperature of decoding, of proposing, and of the text that acceptance is measured on. Tokens of all prompt
sets of a domain count alike, and those of all seeds. Of heads each drafted token's acceptance was measured, and with
that the tokens that a round is expected to give.

Axes: U prompts, S entries: 1, or K drafted tokens.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tempspec.errors import UserError
from tempspec.metrics.bootstrap import Estimate, Sums, bootstrap_compute, difference_estimate, tokens_per_round
from tempspec.metrics.prefixes import PromptSums
from tempspec.metrics.ratio import to_estimate
from tempspec.reporting.answers import shown
from tempspec.reporting.page_tables import Noted
from tempspec.reporting.runs import Collection, MeasuredDraft, MeasuredRun

__all__ = ["DraftLine", "OwnText", "own_texts"]

METRIC = "analytic_acceptance"
ACCEPTANCE, ROUNDS = "Acceptance", "Tokens per round"
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
        measure: `Acceptance`, or `Tokens per round`.
        domain: in words; empty where all prompt sets are of one.
        temperatures: T, ascending.
        values: each measured draft, with the values of its single seeds as notes.
        against: the draft that the others are compared with: the one that is named, if it was measured here.
        differences: each other draft that shares a seed with it, paired by prompt on the seeds that both have; the
            notes say in how many of these the difference has the same sign, and whether it is shown.
        unmeasured: drafts without a measurement.
    """

    measure: str
    domain: str
    temperatures: Sequence[float]
    values: Sequence[DraftLine]
    against: str
    differences: Sequence[DraftLine]
    unmeasured: Sequence[str]

    @property
    def title(self) -> str:
        """What the values are."""
        return ", ".join(filter(None, [f"{self.measure} on the target's own text", self.domain]))

    @property
    def contrast(self) -> str:
        """What the differences are."""
        kind = "" if self.measure == ACCEPTANCE else f" in {self.measure.lower()}"
        return ", ".join(filter(None, [f"Difference to {self.against}{kind}", self.domain]))


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
        _of_domain(collection, measure, _DOMAINS[domain] if len(domains) > 1 else "", texts)
        for domain, texts in domains.items()
        for measure in (ACCEPTANCE, ROUNDS)
        if any(_seeds(draft, measure, texts) for draft in collection.drafts)
    ]
    measured = dict.fromkeys(line.name for own in found for line in own.values)
    if collection.against and not measured:
        raise UserError(
            f"--against {collection.against}: expected drafts that were measured on the target's own text, got none; "
            "leave it out, or run the study's validate"
        )
    if collection.against and collection.against not in measured:
        raise UserError(
            f"--against expected a draft that was measured on the target's own text, one of {', '.join(measured)}, "
            f"got {collection.against!r}"
        )
    return found


def _of_domain(collection: Collection, measure: str, domain: str, texts: Mapping[float, Sequence[str]]) -> OwnText:
    runs = {draft.name: _seeds(draft, measure, texts) for draft in collection.drafts}
    measured = [draft for draft in collection.drafts if runs[draft.name]]
    against = _against(collection, measured)
    temperatures = sorted({t for draft in measured for run in runs[draft.name].values() for t in run})
    values = [
        DraftLine(draft.name, _counted(len(runs[draft.name]), draft.planned), _values(runs[draft.name]))
        for draft in measured
    ]
    unmeasured = [draft.name for draft in collection.drafts if not runs[draft.name]]
    differences = [*_differences(measured, runs, against)]
    return OwnText(measure, domain, temperatures, values, against, differences, [*unmeasured, *collection.missing])


_Seed = Mapping[float, PromptSums]
"""What was counted with one seed, by temperature: the acceptance of the first drafted token, or of all K."""


def _seeds(draft: MeasuredDraft, measure: str, texts: Mapping[float, Sequence[str]]) -> dict[str, _Seed]:
    """A draft's measured seeds."""
    count = _first_token if measure == ACCEPTANCE else _all_tokens
    found = {}
    for seed, run in draft.runs.items():
        counts = {t: [held for name in names if (held := count(run, name, t))] for t, names in texts.items()}
        found[seed] = {t: PromptSums.joined(parts) for t, parts in counts.items() if parts}
    return {seed: counts for seed, counts in found.items() if counts}


def _first_token(run: MeasuredRun, text: str, t: float) -> PromptSums | None:
    return run.analytic.get((text, METRIC, t, t))


def _all_tokens(run: MeasuredRun, text: str, t: float) -> PromptSums | None:
    """Those of a head's drafted tokens, side by side; None of a draft whose later ones are like the first."""
    held, number = _first_token(run, text, t), 2
    entries = []
    while held is not None:
        entries.append(held)
        held, number = run.later.get((f"{text}/{number}", METRIC, t, t)), number + 1
    return PromptSums.beside(entries) if len(entries) > 1 else None


def _sums(counts: PromptSums) -> Sums:
    """What intervals are of: acceptance, or the tokens of a round of K."""
    sums = counts.sums()
    return sums if len(sums.numerator_SW) == 1 else tokens_per_round(sums)


def _values(seeds: Mapping[str, _Seed]) -> dict[float, Noted]:
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
    here, there = (_sums(PromptSums.joined(side)) for side in zip(*common, strict=True))
    (change,) = to_estimate(difference_estimate(here, there))
    same = sum((_value(a) - _value(b)) * change.value > 0 for a, b in common)
    signs = f"{same} of {len(pairs)}"
    return Noted(change, signs if shown(change) and same == len(pairs) else f"not shown, {signs}")


def _paired(a: PromptSums, b: PromptSums) -> tuple[PromptSums, PromptSums]:
    return a.only(b.key_U), b.only(a.key_U)


def _estimate(parts: Sequence[PromptSums]) -> Estimate:
    (estimate,) = to_estimate(bootstrap_compute(_sums(PromptSums.joined(parts))))
    return estimate


def _value(counts: PromptSums) -> float:
    return _estimate([counts]).value


def _point(counts: PromptSums) -> str:
    return Estimate(_value(counts), math.nan, math.nan, len(counts.key_U)).point()


def _counted(measured: int, planned: int) -> str:
    """How many seeds are measured, and of how many.

    >>> _counted(3, 3), _counted(1, 3), _counted(1, 1)
    ('3 seeds', '1 of 3 seeds', '1 seed')
    """
    return f"{measured} of {planned} seeds" if measured < planned else f"{measured} seed{'s' if measured > 1 else ''}"


def _against(collection: Collection, measured: Sequence[MeasuredDraft]) -> str:
    """The draft that is named; else the first whose text and loss are of the reference temperature; else the first."""
    names = [draft.name for draft in measured]
    labels = ("train_temperature", "generation_temperature")
    alike = [d.name for d in measured if all(d.labels.get(label) == collection.reference for label in labels)]
    return collection.against if collection.against in names else (alike or names)[0]
