"""What drafting gains, from the yield of a round and what an engine's rounds cost (floor 4).

A round without a draft and one that drafts K tokens are timed in the engine, with so many requests in flight. One that
drafts fewer is taken to cost in between, on a straight line: the target verifies one less, the draft runs once less.

Axes: N requests, K drafted tokens, W = 1 + replicates.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tempspec.metrics.bootstrap import Estimate, Sums, bootstrap_compute, bootstrap_update, paired_quotient
from tempspec.metrics.ratio import to_estimate
from tempspec.metrics.rows import Cell

__all__ = ["Advice", "Gain", "Pair", "Speed", "Timed", "advised", "best", "gains", "in_pairs", "speeds_of", "speedup"]


@dataclass(frozen=True)
class Timed:
    """How long one request took.

    Attributes:
        prompt_key: of its prompt.
        first: seconds until its first token, as a request of one token took them.
        seconds: of all later tokens.
        rounds: target calls of these; 0 where the engine does not tell.
        tokens: of these.
    """

    prompt_key: int
    first: float
    seconds: float
    rounds: float
    tokens: int


@dataclass(frozen=True)
class Speed:
    """Requests to one server, so many at a time.

    Attributes:
        temperature: of the target.
        concurrency: requests in flight.
        drafted: tokens that a round drafts; 0 of a server without a draft.
        requests: at least one.
    """

    temperature: float
    concurrency: int
    drafted: int
    requests: tuple[Timed, ...]

    def tokens_per_second(self) -> Estimate:
        """Of all requests in flight."""
        return _estimate(self._ratio("tokens", "seconds", self.concurrency))

    def first_token(self) -> Estimate:
        """Mean seconds until the first token."""
        return _estimate(self._ratio("first", None))

    def step(self) -> Sums:
        """Seconds of a round."""
        return self._ratio("seconds", "rounds")

    def rate(self) -> Sums:
        """Tokens per second of a request."""
        return self._ratio("tokens", "seconds")

    def to_dict(self) -> dict[str, Any]:
        """For a file; `speeds_of` reads it."""
        return asdict(self)

    def _ratio(self, above: str, below: str | None, factor: float = 1.0) -> Sums:
        key_N = torch.tensor([one.prompt_key for one in self.requests], dtype=torch.int64)
        above_N, below_N = (
            torch.tensor([1.0 if name is None else getattr(one, name) for one in self.requests], dtype=torch.float64)
            for name in (above, below)
        )
        return bootstrap_update(factor * above_N[:, None], below_N.clamp(min=0)[:, None], key_N)


def speeds_of(records: Iterable[Mapping[str, Any]]) -> list[Speed]:
    """Speeds as `Speed.to_dict` has written them."""
    return [Speed(**{**one, "requests": tuple(Timed(**request) for request in one["requests"])}) for one in records]


Pair = tuple[Speed, Speed | None]
"""With a draft, and without where a server without one was asked."""


def in_pairs(speeds: Sequence[Speed]) -> Iterator[Pair]:
    """Each timing with a draft, and that without at the same temperature and concurrency."""
    plain = {(one.temperature, one.concurrency): one for one in speeds if not one.drafted}
    yield from ((one, plain.get((one.temperature, one.concurrency))) for one in speeds if one.drafted)


def speedup(drafting: Speed, plain: Speed) -> Estimate:
    """How many times as fast a request's tokens come with a draft; paired where both were asked the same prompts."""
    return _estimate(_quotient(drafting.rate(), plain.rate()))


@dataclass(frozen=True)
class Gain:
    """What drafting so many tokens gains.

    Attributes:
        drafted: K.
        speedup: tokens per second over those without a draft.

    >>> print(Gain(2, Estimate(1.31, 1.2, 1.4, 12)))
    draft 2: 1.31 [1.20, 1.40] times as fast as without
    """

    drafted: int
    speedup: Estimate

    def __str__(self) -> str:
        """What to do."""
        if self.drafted == 0:
            return "draft nothing: no length is faster"
        return f"draft {self.drafted}: {self.speedup} times as fast as without"


def gains(tokens: Sums, drafting: Speed, plain: Speed) -> list[Gain]:
    """What drafting 1, 2, ... tokens gains, as far as both the tokens and the costs are known.

    Args:
        tokens: of a round that drafts 1..K tokens, `[K, W]`; see `parity.tokens_per_round`.
        drafting: of the server with the draft.
        plain: of the same server without.

    >>> def timed(seconds, rounds):
    ...     return tuple(Timed(key, 0.1, seconds, rounds, 10) for key in range(8))
    >>> key_N, ones_N1 = torch.arange(8), torch.ones(8, 1)
    >>> tokens = bootstrap_update(torch.tensor([[1.6, 1.8]]).expand(8, 2), ones_N1.expand(8, 2), key_N)
    >>> found = gains(tokens, Speed(1.0, 4, 2, timed(3.0, 10)), Speed(1.0, 4, 0, timed(2.0, 10)))
    >>> [(one.drafted, round(one.speedup.value, 3)) for one in found]
    [(1, 1.28), (2, 1.2)]
    """
    plain_W, drafting_W = (_values(speed.step()) for speed in (plain, drafting))
    found = []
    for count in range(1, min(tokens.numerator_SW.shape[0], drafting.drafted) + 1):
        cost_1W = plain_W + count / drafting.drafted * (drafting_W - plain_W)
        yielded_1W = tokens.numerator_SW[count - 1 : count] / tokens.denominator_SW[count - 1 : count]
        found.append(Gain(count, _estimate(Sums(yielded_1W * plain_W, cost_1W, _fewest(tokens, plain, drafting)))))
    return found


def best(found: Sequence[Gain]) -> Gain:
    """The largest; drafting nothing where none gains.

    >>> best([Gain(1, Estimate(0.9, 0.8, 1.0, 8))]).drafted
    0
    """
    known = [one for one in found if one.speedup.value > 1]
    return max(known, key=lambda one: one.speedup.value, default=Gain(0, Estimate(1.0, math.nan, math.nan, 0)))


@dataclass(frozen=True)
class Advice:
    """What to draft in an engine.

    Attributes:
        cell: what was decoded here.
        concurrency: requests in flight there.
        gain: the best length.
    """

    cell: Cell
    concurrency: int
    gain: Gain


def advised(tokens: Mapping[Cell, Sums], pairs: Sequence[Pair]) -> Iterator[Advice]:
    """The best length of each cell, at each number of requests that was timed with a draft and without.

    Args:
        tokens: of a round that drafts 1..K tokens, by cell.
        pairs: timings.
    """
    for cell, yielded in tokens.items():
        for drafting, plain in pairs:
            if plain is not None and drafting.temperature == cell.target_temperature:
                yield Advice(cell, drafting.concurrency, best(gains(yielded, drafting, plain)))


def _values(sums: Sums) -> torch.Tensor:
    return torch.where(sums.denominator_SW > 0, sums.numerator_SW / sums.denominator_SW, torch.nan)


def _fewest(tokens: Sums, *speeds: Speed) -> torch.Tensor:
    """The prompts of the part that has fewest: an interval rests on these."""
    first = tokens.seen_M2[tokens.seen_M2[:, 1] == 0]
    return min((first, *(speed.step().seen_M2 for speed in speeds)), key=len)


def _quotient(a: Sums, b: Sums) -> Sums:
    try:
        return paired_quotient(a, b)
    except ValueError:  # other prompts: independent weights, the fewer prompts count
        return Sums(_values(a), _values(b), min(a.seen_M2, b.seen_M2, key=len))


def _estimate(sums: Sums) -> Estimate:
    return to_estimate(bootstrap_compute(sums))[0]
