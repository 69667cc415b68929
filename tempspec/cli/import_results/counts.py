"""What engines count of speculative decoding, in one form (floor 6)."""

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["EngineLog", "LoggedCounts", "at_least", "beyond", "number", "of_vllm"]


@dataclass(frozen=True)
class LoggedCounts:
    """What one request, window or server counted.

    Attributes:
        emitted: tokens, the bonus or correction token of each round included.
        rounds: target calls; 0 where the engine says nothing of them.
        accepted: drafted tokens accepted; with `drafted` None where the engine does not say.
        drafted: tokens drafted.
        drafting: rounds in which something was drafted; 0 where nothing is said of positions.
        by_position: of these, in how many the tokens up to each position were accepted.
    """

    emitted: float
    rounds: float
    accepted: float | None = None
    drafted: float | None = None
    drafting: float = 0.0
    by_position: tuple[float, ...] = ()


@dataclass(frozen=True)
class EngineLog:
    """The content of one file.

    Attributes:
        kind: what wrote it.
        counts: at least one.
        per_request: whether each is a request of its own, so that an interval can be drawn.
        note: what its block efficiency is of, where that is not every target call.
    """

    kind: str
    counts: list[LoggedCounts]
    per_request: bool
    note: str = ""


ONLY_DRAFTING = "rounds in which nothing was drafted are left out: the file has no completion_tokens"
"""What vLLM's own counts are of."""


def of_vllm(
    drafting: float,
    accepted: float,
    drafted: float,
    by_position: tuple[float, ...] = (),
    *,
    written: float | None = None,
    requests: float = 1.0,
) -> LoggedCounts:
    """Counts of vLLM, whose own are of the rounds that drafted.

    Every round emits a token beside those that it accepts, and the pass over the prompt one more. Where the number of
    tokens is known, so are the rounds that drafted nothing, but for the tokens that a request's last round accepts
    beyond its end: vLLM counts these and does not write them, see `beyond`.

    Args:
        drafting: `num_spec_steps`, `num_drafts`.
        accepted: tokens.
        drafted: tokens.
        by_position: of the rounds that drafted, how many accepted each position.
        written: tokens after those of the pass over the prompt; None where the engine does not say.
        requests: how many these are.

    >>> of_vllm(15, 45, 60).emitted / 15, of_vllm(15, 45, 60, written=63).rounds
    (4.0, 18.0)
    """
    rounds = drafting
    if written is not None and written > accepted + drafting:  # else all rounds drafted
        rounds = written + beyond(written, by_position, requests) - accepted
    return LoggedCounts(accepted + rounds, rounds, accepted, drafted, drafting if by_position else 0.0, by_position)


def beyond(written: float, by_position: tuple[float, ...], requests: float) -> float:
    """How many tokens requests are expected to accept beyond their ends, if these fall anywhere in a round.

    A round of a accepted tokens emits a + 1 and is the last one in proportion; a / 2 of these are then cut off on
    average. With T the emitted tokens, T = written + requests * sum of a (a + 1) / 2 over rounds / T.

    Args:
        written: tokens.
        by_position: how many rounds accepted each position.
        requests: how many these are.

    >>> round(beyond(60.0, (16.0, 8.0), 1.0), 3)
    0.529
    """
    halves = requests * sum(place * reached for place, reached in enumerate(by_position, start=1))
    return (math.sqrt(written**2 + 4 * halves) - written) / 2


def at_least(histogram: list[Any]) -> tuple[float, ...]:
    """From how many rounds accepted exactly 0, 1, 2, ... tokens to how many accepted each position.

    >>> at_least([3, 1, 0, 0, 11])
    (12.0, 11.0, 11.0, 11.0)
    """
    numbers = [number(value) for value in histogram]
    return tuple(sum(numbers[position:]) for position in range(1, len(numbers)))


def number(value: Any) -> float:
    """A count.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"expected a number of 0 or more, got {value!r}")
    return float(value)
