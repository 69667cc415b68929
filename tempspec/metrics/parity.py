"""Counts of the same prompts from two sources: an engine's, and ours under a hypothesis (floor 4).

Both count the same of every request: in how many rounds each position was tested, in how many it was accepted. What
one of them counts of the rounds at a request's end, or after a stop token, is no part of a ratio of the two.

Axes: N requests, K positions of a round, W = 1 + replicates.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from tempspec.metrics.bootstrap import Estimate, Sums, bootstrap_update, contrast_estimate, running_product
from tempspec.metrics.ratio import to_estimate
from tempspec.metrics.rows import DecodedRow

__all__ = [
    "Counted",
    "Line",
    "Totals",
    "agrees",
    "compare",
    "counted_row",
    "figures",
    "mean_drafted",
    "tokens_per_round",
    "total_figures",
    "total_row",
]


@dataclass(frozen=True)
class Counted:
    """What is counted of one request.

    Attributes:
        prompt_key: of its prompt, or of what else was counted together.
        rounds: target calls, the last left out where the length cut it.
        drafting: of these, how many drafted something.
        tested: rounds that tested each position, `[K]`.
        accepted: of these, how many accepted it.
    """

    prompt_key: int
    rounds: float
    drafting: float
    tested: tuple[float, ...]
    accepted: tuple[float, ...]

    @classmethod
    def of_reached(cls, prompt_key: int, rounds: float, drafting: float, reached: Sequence[float]) -> "Counted":
        """From the rounds that accepted all positions up to each, as engines count: a position is tested after these.

        >>> Counted.of_reached(7, 12, 10, [6, 3]).tested
        (10, 6)
        """
        return cls(prompt_key, rounds, drafting, (drafting, *reached[:-1]), tuple(reached))


def counted_row(row: DecodedRow, longest: int) -> Counted:
    """What a decoded row says of the rounds after the first, which an engine has in its pass over the prompt.

    A drafter may end a draft itself. Engines count the positions after that as not accepted, and so does this. Where
    the length left no room for a position, nothing is known of it.

    Args:
        row: of predict.
        longest: K, the most tokens that a round drafts.

    >>> row = {"prompt_key": 7, "finish": "length", "drafted": [2, 1, 2, 0], "accepted": [1, 1, 0, 0]}
    >>> counted_row(row, 2)
    Counted(prompt_key=7, rounds=2, drafting=2, tested=(2, 1), accepted=(1, 0))
    """
    cut = row["finish"] == "length"  # the last round may draft less than it would, for want of room
    left = list(accumulate(length + 1 for length in reversed(row["accepted"])))[::-1]
    room = [min(longest, tokens - 1) if cut else longest for tokens in left]
    rounds = list(zip(row["drafted"], row["accepted"], room, strict=True))[1:]
    whole = rounds[:-1] if cut else rounds
    places = range(1, longest + 1)
    tested = [sum(0 < d and a >= i - 1 and (i <= d or d < most) for d, a, most in rounds) for i in places]
    accepted = [sum(a >= i for _, a, _ in rounds) for i in places]
    drafting = sum(d > 0 for d, _, _ in whole)
    return Counted(row["prompt_key"], len(whole), drafting, tuple(tested), tuple(accepted))


def figures(counted: Iterable[Counted]) -> dict[str, Sums]:
    """Ratios by name, with their replicates: acceptance rate, block efficiency, and acceptance up to each position.

    Block efficiency is `1 + d (a_1 + ... + a_K)`: d the share of rounds that draft, a_i that of these which accept all
    positions up to i.

    >>> found = figures([Counted.of_reached(7, 20, 10, [6, 3])])
    >>> {name: round(float(sums.numerator_SW[0, 0] / sums.denominator_SW[0, 0]), 3) for name, sums in found.items()}
    {'acceptance rate': 0.562, 'block efficiency': 1.45, 'position 1': 0.6, 'position 2': 0.3}
    """
    counted = list(counted)
    key_N = torch.tensor([one.prompt_key for one in counted], dtype=torch.int64)
    accepted_NK, tested_NK = (_column(counted, name) for name in ("accepted", "tested"))
    rate = bootstrap_update(accepted_NK.sum(1, True), tested_NK.sum(1, True), key_N)
    joint = running_product(bootstrap_update(accepted_NK, tested_NK, key_N))
    found = {"acceptance rate": rate, "block efficiency": _row(tokens_per_round(counted), -1)}
    for place in range(joint.numerator_SW.shape[0]):
        found[f"position {place + 1}"] = replace(_row(joint, place), seen_M2=rate.seen_M2)
    return found


@dataclass(frozen=True)
class Totals:
    """What is counted of one request where nothing is said of positions.

    Attributes:
        prompt_key: of its prompt.
        rounds: target calls, those of the last tokens included.
        drafted: tokens.
        accepted: of these.
    """

    prompt_key: int
    rounds: float
    drafted: float
    accepted: float


def total_row(row: DecodedRow) -> Totals:
    """What a decoded row says.

    Args:
        row: of predict.
    """
    return Totals(row["prompt_key"], len(row["drafted"]), sum(row["drafted"]), sum(row["accepted"]))


def total_figures(totals: Iterable[Totals]) -> dict[str, Sums]:
    """Ratios by name: draft acceptance (accepted / drafted) and block efficiency.

    >>> found = total_figures([Totals(7, 10, 40, 6)])
    >>> {name: float(sums.numerator_SW[0, 0] / sums.denominator_SW[0, 0]) for name, sums in found.items()}
    {'draft acceptance': 0.15, 'block efficiency': 1.6}
    """
    totals = list(totals)
    key_N = torch.tensor([one.prompt_key for one in totals], dtype=torch.int64)
    accepted_N1, drafted_N1, rounds_N1 = (
        torch.tensor([[getattr(one, name)] for one in totals], dtype=torch.float64)
        for name in ("accepted", "drafted", "rounds")
    )
    return {
        "draft acceptance": bootstrap_update(accepted_N1, drafted_N1, key_N),
        "block efficiency": bootstrap_update(accepted_N1 + rounds_N1, rounds_N1, key_N),
    }


def mean_drafted(totals: Iterable[Totals]) -> float:
    """Drafted tokens per round over all requests.

    >>> mean_drafted([Totals(7, 10, 40, 6), Totals(8, 10, 20, 6)])
    3.0
    """
    totals = list(totals)
    return sum(one.drafted for one in totals) / max(sum(one.rounds for one in totals), 1.0)


def tokens_per_round(counted: Sequence[Counted], *, tokenwise: bool = True) -> Sums:
    """The tokens of a round if it drafts at most 1, 2, ..., K tokens, as sums `[K, W]`.

    Exact for rules that decide token by token: a shorter draft is then the beginning of a longer one.

    Args:
        counted: of each request.
        tokenwise: whether the rule is one of these; else only the longest draft's tokens are known, and others NaN.

    >>> found = tokens_per_round([Counted.of_reached(7, 20, 10, [6, 3])])
    >>> found.numerator_SW[:, 0].tolist()
    [1.3, 1.45]
    """
    key_N = torch.tensor([one.prompt_key for one in counted], dtype=torch.int64)
    accepted_NK, tested_NK = (_column(counted, name) for name in ("accepted", "tested"))
    drafting_N1, rounds_N1 = (_column(counted, name)[:, None] for name in ("drafting", "rounds"))
    share = bootstrap_update(drafting_N1, rounds_N1, key_N)
    joint = running_product(bootstrap_update(accepted_NK, tested_NK, key_N))
    drafting_1W = share.numerator_SW / share.denominator_SW
    length_KW = 1 + drafting_1W * joint.numerator_SW.nan_to_num(0.0).cumsum(0)
    if not tokenwise:
        length_KW[:-1] = torch.nan
    return Sums(length_KW, torch.ones_like(length_KW), share.seen_M2)


def _column(counted: Sequence[Counted], name: str) -> torch.Tensor:
    return torch.tensor([getattr(one, name) for one in counted], dtype=torch.float64)


def _row(sums: Sums, place: int) -> Sums:
    """One entry; its prompts are those of the first."""
    at = [place]
    return Sums(sums.numerator_SW[at], sums.denominator_SW[at], sums.seen_M2)


@dataclass(frozen=True)
class Line:
    """One figure of both.

    Attributes:
        name: of the figure.
        theirs: the engine's.
        ours: under the hypothesis.
        difference: theirs - ours, paired where both counted the same prompts.
        simultaneous: the same with an interval that holds for all lines of a check at once.
    """

    name: str
    theirs: Estimate
    ours: Estimate
    difference: Estimate
    simultaneous: Estimate


def compare(theirs: Mapping[str, Sums], ours: Mapping[str, Sums], among: int = 1) -> list[Line]:
    """Every figure that both have.

    Args:
        theirs: `figures` of the engine.
        ours: under a hypothesis.
        among: how many lines are looked at in all.
    """
    return [
        Line(
            name,
            _estimate((1.0, theirs[name])),
            _estimate((1.0, ours[name])),
            _estimate((1.0, theirs[name]), (-1.0, ours[name])),
            _estimate((1.0, theirs[name]), (-1.0, ours[name]), among=among),
        )
        for name in theirs
        if name in ours
    ]


def _estimate(*terms: tuple[float, Sums], among: int = 1) -> Estimate:
    return to_estimate(contrast_estimate(*terms, among=among))[0]


def agrees(lines: Sequence[Line]) -> bool | None:
    """Whether no difference excludes 0; None where there are too few prompts to tell."""
    if all(math.isnan(line.simultaneous.low) for line in lines):
        return None
    known = [line.simultaneous for line in lines if not math.isnan(line.simultaneous.low)]
    return all(one.low <= _ROUNDING and one.high >= -_ROUNDING for one in known)


_ROUNDING = 1e-9
"""Differences of equal counts are 0 but for rounding, and then have no width."""
