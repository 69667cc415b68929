"""The four questions, answered in a sentence each from paired estimates (floor 5).

A sentence claims a direction only where the 95% interval leaves zero out; otherwise it says "not shown".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import FEWEST, Estimate, Sums, contrast_estimate
from tempspec.metrics.ratio import to_estimate
from tempspec.metrics.rows import Cell
from tempspec.reporting.runs import SAMPLED, Collection, MeasuredDraft
from tempspec.reporting.sections.common import drafting_pairs

__all__ = ["Answer", "answers", "contrast", "shown", "verdict"]


@dataclass(frozen=True)
class Answer:
    """A question with its sentence; `shown` is whether the interval leaves zero out."""

    question: str
    sentence: str
    shown: bool = False


@dataclass(frozen=True)
class Change:
    """What changes, by how much, and where that was measured."""

    what: str
    found: Estimate
    where: str

    def said(self) -> str:
        """In words, without a full stop."""
        kind = "95% interval" if self.found.prompts >= FEWEST else "too few for an interval"
        tail = f"{self.found:+} ({kind}, n = {self.found.prompts} prompts: {self.where})"
        known = shown(self.found)
        return f"{self.what} {verdict(self.found)}: {tail}" if known else f"not shown: {self.what} changes by {tail}"


def answers(collection: Collection) -> list[Answer]:
    """The four answers; a question that these runs cannot answer says what is missing."""
    return [_temperature(collection), _consistency(collection), _domains(collection), _remedies(collection)]


def contrast(*terms: tuple[float, Sums], among: int = 1) -> Estimate:
    """The weighted sum of ratios as an estimate; `among` as in `contrast_estimate`."""
    return to_estimate(contrast_estimate(*terms, among=among))[0]


def shown(estimate: Estimate) -> bool:
    """Whether the interval leaves zero out, as it is printed: to three decimals.

    >>> shown(Estimate(0.1, 0.05, 0.15, 9)), shown(Estimate(0.1, 0.0004, 0.25, 9))
    (True, False)
    """
    return round(estimate.low, 3) > 0 or round(estimate.high, 3) < 0


def verdict(estimate: Estimate) -> str:
    """`rises`, `falls` or `not shown`.

    >>> verdict(Estimate(-0.1, -0.2, -0.05, 9)), verdict(Estimate(0.1, -0.1, 0.2, 9))
    ('falls', 'not shown')
    """
    return ("rises" if estimate.value > 0 else "falls") if shown(estimate) else "not shown"


def _temperature(collection: Collection) -> Answer:
    question = "How does the decoding temperature change the gain?"
    for draft in collection.drafts:
        for cells in _by_temperature(draft, collection.domains):
            low, high = cells[0], cells[-1]
            if low.target_temperature == high.target_temperature:
                continue
            first, last = (draft.metrics[cell].block_efficiency.sums() for cell in (low, high))
            span = f"from T = {low.target_temperature:g} to {high.target_temperature:g}"
            where = f"{draft.name}, {_place(low)}"
            change = Change(f"block efficiency {span}", contrast((1, last), (-1, first)), where)
            return _answer(question, change, *_sampled_or_argmax(draft, high))
    return Answer(question, "Not measured here: it needs predict at two or more target temperatures.")


def _sampled_or_argmax(draft: MeasuredDraft, cell: Cell) -> Iterator[Change]:
    """What sampled proposals change against the likeliest token, where both were decoded."""
    for sampled, argmax in drafting_pairs(draft):
        if sampled == cell:
            gain, loss = (draft.metrics[c].block_efficiency.sums() for c in (sampled, argmax))
            what = f"block efficiency at T = {cell.target_temperature:g} when proposals are sampled instead of argmax"
            yield Change(what, contrast((1, gain), (-1, loss)), "the same place")


def _consistency(collection: Collection) -> Answer:
    question = "Does distillation at the decoding temperature help?"
    trained = collection.trained_at
    reference = trained.get(collection.reference)
    hot = sorted((t for t in trained if t != collection.reference), reverse=True)
    if reference is None or not hot:
        needs = f"drafts trained at T = {collection.reference:g} and at another one that differ in no other label"
        return Answer(question, f"Not measured here: it needs {needs}.")
    for temperature in hot:
        if changes := [
            *_decoded_gain(collection, trained[temperature], reference, temperature),
            *_analytic_gain(collection, trained[temperature], reference, temperature),
        ]:
            return _answer(question, *changes)
    return Answer(question, "Not measured here: no draft was measured at the temperature it was trained at.")


def _decoded_gain(
    collection: Collection, draft: MeasuredDraft, reference: MeasuredDraft, temperature: float
) -> Iterator[Change]:
    """What training at T changed in decoding at T."""
    for cell in _drafting(draft, collection.domains):
        if cell.target_temperature == temperature == cell.draft_temperature and cell in reference.metrics:
            found = contrast((1, _accepted(draft, cell)), (-1, _accepted(reference, cell)))
            what = f"acceptance at T = {temperature:g} when trained there instead of at {collection.reference:g}"
            yield Change(what, found, _place(cell))
            return


def _analytic_gain(
    collection: Collection, draft: MeasuredDraft, reference: MeasuredDraft, temperature: float
) -> Iterator[Change]:
    """The same without sampling noise: the overlap at T, on the target's own text where there is some."""
    key = ("analytic_acceptance", temperature, temperature)
    texts, others = collection.texts(draft), collection.texts(reference)
    for text in sorted(texts, key=lambda text: not text.endswith(SAMPLED)):
        if key in texts[text] and key in others.get(text, {}):
            found = contrast((1, texts[text][key]), (-1, others[text][key]))
            what = (
                f"analytic acceptance at T = {temperature:g} when trained there instead of at {collection.reference:g}"
            )
            yield Change(what, found, text)
            return


def _domains(collection: Collection) -> Answer:
    question = "What happens out of domain and out of the trained range?"
    changes = [*_other_text(collection), *_other_range(collection)]
    if not changes:
        return Answer(
            question,
            "Not measured here: it needs a study with prompt sets in and out of the domain, or one draft whose trained "
            "temperatures leave out some that another was trained at.",
        )
    return _answer(question, *changes)


def _other_text(collection: Collection) -> Iterator[Change]:
    """Acceptance out of the domain against that in it, at the reference temperature, of the first draft with both."""
    for draft in collection.drafts:
        for (inside, _), (outside, _) in _domain_pairs(draft, collection, collection.reference):
            what = f"acceptance at T = {collection.reference:g} out of domain ({outside.prompt_set})"
            where = f"{draft.name}, against {inside.prompt_set}, unpaired"
            yield Change(what, contrast((1, _accepted(draft, outside)), (-1, _accepted(draft, inside))), where)
            return


def _other_range(collection: Collection) -> Iterator[Change]:
    """A draft against one that was trained at T too, where T is out of its own range; then out of the domain as well.

    What separates the two drafts at the reference temperature is taken off: it is nothing that the range did.
    """
    for narrow, wide, temperature in _ranges(collection):
        ref = collection.reference
        places: list[tuple[tuple[Cell, ...], ...]] = [*_domain_pairs(narrow, collection, ref, temperature)]
        places = places or [(pair,) for pair in _at(narrow, {}, ref, temperature)]
        for place in places:
            if not all(cell in wide.metrics for pair in place for cell in pair):
                continue
            (base, _), *_ = place
            off = [(-1.0, _accepted(narrow, base)), (1.0, _accepted(wide, base))]
            for name, (_, hot) in zip(("", f" and out of domain ({place[-1][0].prompt_set})"), place, strict=False):
                found = contrast((1, _accepted(narrow, hot)), (-1, _accepted(wide, hot)), *off)
                where = f"{narrow.name}, {_span(narrow)}, against {wide.name}, {_span(wide)}, from T = {ref:g}"
                yield Change(f"acceptance at T = {temperature:g} out of the trained range{name}", found, where)
            return


def _ranges(collection: Collection) -> Iterator[tuple[MeasuredDraft, MeasuredDraft, float]]:
    """(a draft, another, T): T is out of the range of the one and in that of the other; the farthest T first."""
    known = [draft for draft in collection.drafts if draft.trained and draft.rows]
    for narrow, wide in permutations(known, 2):
        measured = {cell.target_temperature for cell in _drafting(narrow, {})}
        out = [t for t in measured if _inside(wide, t) and not _inside(narrow, t)]
        both = all(_inside(draft, collection.reference) for draft in (narrow, wide))
        for temperature in sorted(out, key=lambda t: abs(t - collection.reference), reverse=True) if both else ():
            yield narrow, wide, temperature


def _inside(draft: MeasuredDraft, temperature: float) -> bool:
    assert draft.trained is not None
    return draft.trained[0] <= temperature <= draft.trained[1]


def _span(draft: MeasuredDraft) -> str:
    low, high = draft.trained or (0.0, 0.0)
    return f"trained at {low:g} to {high:g}" if low < high else f"trained at {low:g}"


def _at(draft: MeasuredDraft, domains: Mapping[str, str], *temperatures: float) -> list[tuple[Cell, ...]]:
    """Cells of one verifier and prompt set at each of some temperatures, proposals at the same one."""
    found = [{c.target_temperature: c for c in cells} for cells in _by_temperature(draft, domains)]
    return [tuple(cells[t] for t in temperatures) for cells in found if all(t in cells for t in temperatures)]


def _domain_pairs(
    draft: MeasuredDraft, collection: Collection, first: float, second: float | None = None
) -> list[tuple[tuple[Cell, ...], tuple[Cell, ...]]]:
    """Cells in the domain and cells out of it, of one verifier, at one or two temperatures."""
    cells = _at(draft, collection.domains, first, first if second is None else second)
    inside, outside = ([c for c in cells if collection.domains.get(c[0].prompt_set) == side] for side in ("in", "out"))
    return [(one, other) for one in inside for other in outside if one[0].verifier == other[0].verifier]


def _accepted(draft: MeasuredDraft, cell: Cell) -> Sums:
    return draft.metrics[cell].acceptance_rate.sums()


def _remedies(collection: Collection) -> Answer:
    question = "What speeds up high temperatures?"
    base = next((draft for draft in collection.drafts if draft.rows), None)
    cells = _drafting(base, collection.domains) if base else []
    if base is None or not cells:
        return Answer(question, "Not measured here: it needs predict with a draft.")
    hottest = max(cell.target_temperature for cell in cells)
    at = [cell for cell in cells if cell.target_temperature == hottest]
    plain = next((cell for cell in at if cell.draft_temperature == hottest), at[0])
    tried: dict[str, tuple[Sums, Sums]] = {}
    for draft in collection.drafts:
        for cell in _drafting(draft, collection.domains):
            place = (cell.prompt_set, cell.target_temperature)
            if place == (plain.prompt_set, hottest) and (draft, cell) != (base, plain):
                lossy = draft.estimates[cell].get("total_variation_from_target", Estimate.nothing())
                off = f", whose text is {lossy.point()} off the target's distribution" if lossy.prompts else ""
                label = f"{draft.name}, {cell.verifier}, draft T = {cell.draft_temperature:g}{off}"
                one, other = (d.metrics[c].block_efficiency.sums() for d, c in ((draft, cell), (base, plain)))
                tried[label] = one, other
    if not tried:
        return Answer(question, "Not measured here: it needs two drafts, verifiers or draft temperatures.")
    found = {label: contrast((1, one), (-1, other), among=len(tried)) for label, (one, other) in tried.items()}
    best = max(found, key=lambda label: found[label].value)
    count = f"the best of {len(tried)}, intervals simultaneous" if len(tried) > 1 else "the only one tried"
    what = f"block efficiency at T = {hottest:g} with {best} ({count})"
    return _answer(question, Change(what, found[best], f"against {base.name}, {_place(plain)}"))


def _answer(question: str, *changes: Change) -> Answer:
    """One sentence of all changes, each claimed only where its interval leaves zero out."""
    sentence = "; ".join(change.said() for change in changes)
    return Answer(question, f"{sentence[0].upper()}{sentence[1:]}.", any(shown(change.found) for change in changes))


def _drafting(draft: MeasuredDraft, domains: Mapping[str, str]) -> list[Cell]:
    """Cells in which something was drafted; those out of the domain come last."""
    cells = [cell for cell in draft.metrics.cells if cell.verifier != BASELINE]
    return sorted(cells, key=lambda cell: domains.get(cell.prompt_set) == "out")


def _by_temperature(draft: MeasuredDraft, domains: Mapping[str, str]) -> Iterator[list[Cell]]:
    """Cells at equal temperatures by ascending temperature, for each verifier and prompt set."""
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for cell in _drafting(draft, domains):
        if cell.draft_temperature == cell.target_temperature:
            grouped.setdefault((cell.verifier, cell.prompt_set), []).append(cell)
    for cells in grouped.values():
        yield sorted(cells, key=lambda cell: cell.target_temperature)


def _place(cell: Cell) -> str:
    return f"{cell.verifier}, {cell.prompt_set}"
