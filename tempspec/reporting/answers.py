"""The four questions, answered in a sentence each from paired estimates (floor 5).

A sentence claims a direction only where the 95% interval leaves zero out; otherwise it says "not shown".
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import Estimate, Sums, contrast_estimate
from tempspec.metrics.ratio import to_estimate
from tempspec.metrics.rows import Cell
from tempspec.reporting.runs import Collection, Draft

__all__ = ["Answer", "answers", "contrast", "shown", "verdict"]


@dataclass(frozen=True)
class Answer:
    """A question with its sentence; `shown` is whether the interval leaves zero out."""

    question: str
    sentence: str
    shown: bool = False


def answers(collection: Collection) -> list[Answer]:
    """The four answers; a question that these runs cannot answer says what is missing."""
    return [_temperature(collection), _consistency(collection), _domains(collection), _remedies(collection)]


def contrast(*terms: tuple[float, Sums], among: int = 1) -> Estimate:
    """The weighted sum of ratios as an estimate; `among` as in `contrast_estimate`."""
    return to_estimate(contrast_estimate(*terms, among=among))[0]


def shown(estimate: Estimate) -> bool:
    """Whether the interval leaves zero out.

    >>> shown(Estimate(0.1, 0.05, 0.15, 9)), shown(Estimate(0.1, -0.05, 0.25, 9))
    (True, False)
    """
    return estimate.low > 0 or estimate.high < 0


def verdict(estimate: Estimate) -> str:
    """`rises`, `falls` or `not shown`.

    >>> verdict(Estimate(-0.1, -0.2, -0.05, 9)), verdict(Estimate(0.1, -0.1, 0.2, 9))
    ('falls', 'not shown')
    """
    return ("rises" if estimate.value > 0 else "falls") if shown(estimate) else "not shown"


def _temperature(collection: Collection) -> Answer:
    question = "How does the decoding temperature change the gain?"
    for draft in collection.drafts:
        for cells in _by_temperature(draft):
            low, high = cells[0], cells[-1]
            if low.target_temperature == high.target_temperature:
                continue
            first, last = (draft.metrics[cell].block_efficiency.sums() for cell in (low, high))
            found = contrast((1, last), (-1, first))
            span = f"from T = {low.target_temperature:g} to {high.target_temperature:g}"
            return _answer(question, f"block efficiency {span}", found, f"{draft.name}, {_place(low)}")
    return Answer(question, "Not measured here: it needs predict at two or more target temperatures.")


def _consistency(collection: Collection) -> Answer:
    question = "Does distillation at a consistent temperature repair it?"
    trained = {
        float(draft.labels["train_temperature"]): draft
        for draft in reversed(collection.drafts)
        if isinstance(draft.labels.get("train_temperature"), int | float) and draft.rows
    }
    reference = trained.get(collection.reference)
    hot = sorted(t for t in trained if t != collection.reference)
    if reference is None or not hot:
        needs = f"drafts trained at T = {collection.reference:g} and at another temperature"
        return Answer(question, f"Not measured here: it needs {needs}.")
    for heat in reversed(hot):
        for cell in _drafting(trained[heat]):
            if cell.target_temperature == heat == cell.draft_temperature and cell in reference.metrics:
                sums = (draft.metrics[cell].acceptance_rate.sums() for draft in (trained[heat], reference))
                found = contrast(*zip((1, -1), sums, strict=True))
                what = f"acceptance at T = {heat:g} when trained there instead of at {collection.reference:g}"
                return _answer(question, what, found, _place(cell))
    return Answer(question, "Not measured here: no draft was decoded at the temperature it was trained at.")


def _domains(collection: Collection) -> Answer:
    question = "What happens out of domain and out of the trained range?"
    for draft in collection.drafts:
        cells = _drafting(draft)
        inside, outside = ([c for c in cells if collection.domains.get(c.prompt_set) == d] for d in ("in", "out"))
        pairs = [
            (one, other)
            for one in inside
            for other in outside
            if one.verifier == other.verifier
            and {t for c in (one, other) for t in (c.target_temperature, c.draft_temperature)} == {collection.reference}
        ]
        for one, other in pairs[:1]:
            sums = (draft.metrics[cell].acceptance_rate.sums() for cell in (other, one))
            found = contrast(*zip((1, -1), sums, strict=True))
            what = f"acceptance at T = {collection.reference:g} out of domain ({other.prompt_set})"
            return _answer(question, what, found, f"{draft.name}, against {one.prompt_set}, unpaired")
    return Answer(question, "Not measured here: it needs a study with prompt sets in and out of the domain.")


def _remedies(collection: Collection) -> Answer:
    question = "What speeds up high temperatures?"
    base = next((draft for draft in collection.drafts if draft.rows), None)
    cells = _drafting(base) if base else []
    if base is None or not cells:
        return Answer(question, "Not measured here: it needs predict with a draft.")
    hottest = max(cell.target_temperature for cell in cells)
    at = [cell for cell in cells if cell.target_temperature == hottest]
    plain = next((cell for cell in at if cell.draft_temperature == hottest), at[0])
    tried: dict[str, tuple[Sums, Sums]] = {}
    for draft in collection.drafts:
        for cell in _drafting(draft):
            place = (cell.prompt_set, cell.target_temperature)
            if place == (plain.prompt_set, hottest) and (draft, cell) != (base, plain):
                label = f"{draft.name}, {cell.verifier}, draft T = {cell.draft_temperature:g}"
                one, other = (d.metrics[c].block_efficiency.sums() for d, c in ((draft, cell), (base, plain)))
                tried[label] = one, other
    if not tried:
        return Answer(question, "Not measured here: it needs two drafts, verifiers or draft temperatures.")
    found = {label: contrast((1, one), (-1, other), among=len(tried)) for label, (one, other) in tried.items()}
    best = max(found, key=lambda label: found[label].value)
    count = f"the best of {len(tried)}, intervals simultaneous" if len(tried) > 1 else "the only one tried"
    what = f"block efficiency at T = {hottest:g} with {best} ({count})"
    return _answer(question, what, found[best], f"against {base.name}, {_place(plain)}")


def _answer(question: str, what: str, found: Estimate, where: str) -> Answer:
    tail = f"{found:+} (95% interval, n = {found.prompts} prompts; {where})."
    if shown(found):
        return Answer(question, f"{what[0].upper()}{what[1:]} {verdict(found)}: {tail}", True)
    return Answer(question, f"Not shown: {what} changes by {tail}")


def _drafting(draft: Draft | None) -> list[Cell]:
    """Cells in which something was drafted and accepted rows were counted."""
    cells = draft.metrics.cells if draft else ()
    return [cell for cell in cells if cell.verifier != BASELINE]


def _by_temperature(draft: Draft) -> Iterator[list[Cell]]:
    """Cells at equal temperatures by ascending temperature, for each verifier and prompt set."""
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for cell in _drafting(draft):
        if cell.draft_temperature == cell.target_temperature:
            grouped.setdefault((cell.verifier, cell.prompt_set), []).append(cell)
    for cells in grouped.values():
        yield sorted(cells, key=lambda cell: cell.target_temperature)


def _place(cell: Cell) -> str:
    return f"{cell.verifier}, {cell.prompt_set}"
