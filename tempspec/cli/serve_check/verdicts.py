"""What the figures of an engine say about it, beside those that our engine has under each hypothesis (floor 6).

Pure: figures in, sentences out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tempspec.metrics.bootstrap import Sums
from tempspec.metrics.parity import Line, agrees, compare

__all__ = [
    "HYPOTHESES",
    "Verdict",
    "of_drafted",
    "of_mean_drafted",
    "of_own_count",
    "of_text",
    "of_tokens",
    "verdict",
]

HYPOTHESES: dict[str, str] = {
    "same": "agrees",
    "argmax": "the engine drafts by argmax: its figures are those of our argmax column",
    "sampled": "the engine samples its draft, and model.sweep.draft_temperatures measures drafts by argmax alone",
    "uncut": "the engine truncates only the target: its figures are those of a draft that is not truncated",
}
"""Columns that our engine computes, by name, and what it means if an engine's figures are those of one."""

TIE = 0.25
"""In nats: two tokens this close may change places where another dtype or batch rounds otherwise."""

MEAN_SLACK = 0.1
"""How far the drafted tokens per round of two engines may differ, as a share: rounds at a text's end draft less."""


@dataclass(frozen=True)
class Verdict:
    """One finding.

    Attributes:
        about: what was compared.
        says: a sentence.
        agrees: whether the engine does what was measured here; None where nothing can be told.
        lines: the figures, beside our `same` column.
    """

    about: str
    says: str
    agrees: bool | None
    lines: tuple[Line, ...] = ()


def verdict(
    temperature: float,
    theirs: Mapping[str, Sums],
    columns: Mapping[str, Mapping[str, Sums]],
    among: int,
    *,
    alike: bool = True,
    only: tuple[str, str] | None = None,
) -> Verdict:
    """Which hypothesis an engine's figures at a temperature fit.

    Args:
        temperature: of the target.
        theirs: `parity.figures` of the engine.
        columns: the same of ours, by the names of `HYPOTHESES`; `same` always.
        among: lines that the whole check looks at.
        alike: whether the figures at temperature 0 agreed: they do not depend on how a draft is sampled.
        only: where the engine drafts in one way whatever it is told, that hypothesis and a remark.
    """
    about = f"T = {temperature:g}"
    compared = {name: compare(theirs, column, among) for name, column in columns.items()}
    fits = {name: agrees(lines) for name, lines in compared.items()}
    lines = tuple(compared["same"])
    if fits["same"] is None:
        return Verdict(about, "too few prompts to tell: give six or more", None, lines)
    if only is not None and fits.get(only[0]):
        return Verdict(about, f"{HYPOTHESES[only[0]]}; {only[1]}", False, lines)
    if fits["same"]:
        also = [name for name, fit in fits.items() if fit and name != "same"]
        more = f"; so does our {' and '.join(also)} column, which more prompts would tell from it" if also else ""
        return Verdict(about, HYPOTHESES["same"] + more, True, lines)
    if not alike:
        return Verdict(about, "another draft, as at T = 0, where nothing is sampled", False, lines)
    named = [name for name, fit in fits.items() if fit]
    if named:
        closest = min(named, key=lambda name: _distance(compared[name]))
        return Verdict(about, HYPOTHESES[closest], False, lines)
    columns_said = ", ".join(columns)
    return Verdict(about, f"another draft: its figures are those of none of our columns ({columns_said})", False, lines)


def _distance(lines: Sequence[Line]) -> float:
    return sum(abs(line.difference.value) for line in lines)


def of_own_count(emitted: float, rounds: float, length: float) -> Verdict | None:
    """Whether an engine's own mean acceptance length is of other rounds than all; None where it is of all.

    Args:
        emitted: tokens of the rounds that it counts.
        rounds: that it counts.
        length: emitted tokens / target calls over all rounds.
    """
    own = emitted / rounds if rounds else 1.0
    if abs(own - length) < 0.005:
        return None
    says = (
        f"counts differ by definition: the engine's mean acceptance length, {own:.2f}, leaves out rounds in which "
        f"nothing was drafted; over all rounds it is {length:.2f}"
    )
    return Verdict("counts", says, True)


def of_drafted(theirs: int, ours: int) -> Verdict | None:
    """Whether both draft as many tokens per round; None where they do."""
    if theirs == ours:
        return None
    says = (
        f"the engine drafts {theirs} tokens per round, the configuration {ours}: set model.length or the engine alike"
    )
    return Verdict("length", says, False)


def of_mean_drafted(theirs: float, ours: float, most: int) -> Verdict | None:
    """Whether both draft as many tokens per round, where the engine tells no lengths; None where they do.

    Args:
        theirs: drafted tokens per round.
        ours: the same.
        most: that a round drafts here.

    >>> of_mean_drafted(3.9, 3.8, 4)
    """
    if abs(theirs - ours) <= MEAN_SLACK * ours:
        return None
    says = (
        f"the engine drafts {theirs:.2f} tokens per round, here it is {ours:.2f}: start llama-server with "
        f"--spec-draft-n-max {most} --spec-draft-n-min 0 --spec-draft-p-min 0"
    )
    return Verdict("length", says, False)


def of_text(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], gap: Callable[[int, int], float]) -> Verdict:
    """Whether texts at temperature 0 are the same.

    Args:
        pairs: the tokens of each, theirs and ours.
        gap: of a pair's number and the place of its first difference: how much less likely than our token theirs is to
            our target, in nats.
    """
    places = {number: _first_difference(*pair) for number, pair in enumerate(pairs)}
    differing = {number: place for number, place in places.items() if place is not None}
    equal = f"{len(pairs) - len(differing)} of {len(pairs)} texts are equal"
    if not pairs:
        return Verdict("text at T = 0", "not compared: the engine returns no token ids", None)
    real = {number: place for number, place in differing.items() if gap(number, place) > TIE}
    if real:
        number, place = min(real.items(), key=lambda item: item[1])
        says = (
            f"{equal}; that of request {number + 1} differs from token {place + 1} on, where theirs is "
            f"{gap(number, place):.2f} nats less likely: another target, or a fault of the engine"
        )
        return Verdict("text at T = 0", says, False)
    ties = f"; the others differ where two tokens are within {TIE:g} nats" if differing else ""
    return Verdict("text at T = 0", f"agrees: {equal}{ties}", True)


def of_tokens(what: str, theirs: Sequence[int] | None, ours: Sequence[int]) -> Verdict | None:
    """Whether a server makes the same tokens of a prompt; None where it does not tell.

    Args:
        what: `tokenizer`, or `chat template`.
        theirs: its tokens.
        ours: ours.
    """
    if theirs is None:
        return None
    place = _first_difference(theirs, ours)
    if place is None:
        return Verdict(what, "agrees", True)
    says = f"another {what}: a prompt's tokens differ from token {place + 1} on ({len(theirs)} there, {len(ours)} here)"
    return Verdict(what, says, False)


def _first_difference(theirs: Sequence[int], ours: Sequence[int]) -> int | None:
    """The place of the first token that differs; None where none does.

    >>> _first_difference([1, 2], [1, 3]), _first_difference([1], [1, 3]), _first_difference([1], [1])
    (1, 1, None)
    """
    both = enumerate(zip(theirs, ours, strict=False))
    place = next((place for place, (one, other) in both if one != other), min(len(theirs), len(ours)))
    return None if place == len(theirs) == len(ours) else place
