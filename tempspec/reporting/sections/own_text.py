"""The section about each draft on the target's own text, at every temperature and with every seed (floor 5)."""

from collections.abc import Iterator, Sequence

from tempspec.metrics.bootstrap import Estimate
from tempspec.reporting.own_text import ROUNDS, DraftLine, OwnText, own_texts
from tempspec.reporting.page_tables import Field, Noted, Sheet
from tempspec.reporting.runs import Collection
from tempspec.reporting.sections.common import Section, slug

__all__ = ["own_text"]


def own_text(collection: Collection) -> Section:
    """Acceptance of the drafts and tokens per round of heads, and differences to one of them."""
    sheets = [sheet for own in own_texts(collection) for sheet in _sheets(own)]
    text = (
        "Analytic acceptance at T, with proposals sampled at T, on text that the target wrote at T. Below a value are "
        "those of the single seeds. A difference is taken prompt by prompt, on the seeds that both drafts have. Below "
        "it is in how many of these seeds it has the same sign. It is not shown where its interval has 0 in it, or "
        "where a seed has the other sign. The tokens per round of a head are 1, and for each drafted token the product "
        "of its acceptance and those before it, on the text's own tokens."
    )
    return Section("own-text", "Acceptance on the target's own text", text, [], sheets)


def _sheets(own: OwnText) -> Iterator[Sheet]:
    names = [*(["rounds"] if own.measure == ROUNDS else []), *filter(None, [own.domain])]
    more = f"; not measured: {', '.join(own.unmeasured)}" if own.unmeasured else ""
    yield _sheet(slug("own-text", *names), own.title + more, own, own.values)
    if own.differences:
        yield _sheet(slug("own-text-difference", *names), own.contrast, own, own.differences, signed=True)


def _sheet(name: str, title: str, own: OwnText, lines: Sequence[DraftLine], *, signed: bool = False) -> Sheet:
    nothing = Noted(Estimate.nothing(), "")
    rows: list[list[Field]] = [
        [line.name, line.seeds, *(line.at.get(t, nothing) for t in own.temperatures)] for line in lines
    ]
    return Sheet(name, title, ["draft", "seeds", *(f"T = {t:g}" for t in own.temperatures)], rows, signed)
