"""The flat record of one request: what predict streams to Parquet and what every metric reads (floor 4).

Metrics are computed from rows alone, so that a resumed run replays the rows on disk and a report needs no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

from tempspec.interfaces import BASELINE, Completion, Pass

__all__ = [
    "METRIC_COLUMNS",
    "PLACE_COLUMNS",
    "Cell",
    "DecodedRow",
    "at_slots",
    "category_cell_of",
    "cell_of",
    "former_columns",
    "row_from_completion",
    "timed_together",
    "todays_columns",
]


# The functional form, because `pass` is a keyword of Python.
DecodedRow = TypedDict(
    "DecodedRow",
    {
        "key": str,  # unique in the run: names the item of the work list
        "pass": Pass,
        "verifier": str,  # the user's label of the verifier, BASELINE for plain decoding
        "prompt_set": str,
        "prompt_index": int,  # within its set
        "prompt_key": int,  # a stable int64 of the prompt's content: the bootstrap's cluster, in every run
        "category": str,  # what the prompt is among those of its set; empty where the set has none
        "turn": int,  # of a conversation, from 1
        "timing_slots": NotRequired[int | None],  # of the timing pass: rows decoded together; 1 where it is missing
        "timed_on": NotRequired[str],  # of the timing pass: the machine; empty in the other
        "timed_in": NotRequired[str],  # likewise: when the session began, in UTC
        "sample": int,  # which of the samples of the same prompt
        "target_temperature": float,
        "draft_temperature": float,  # the target's for plain decoding
        "seed": int,
        "prompt_tokens": int,
        "tokens": list[int],  # the new token ids
        "finish": str,  # "stop" or "length"
        "drafted": list[int],  # one entry per round, here and in the next three
        "tested": list[int],
        "accepted": list[int],
        "expected_acceptance": list[float],  # over tested tokens; empty where the verifier has none, or not asked
        "expected_length": NotRequired[list[float]],  # expected accepted length of each round; empty likewise
        "optimum": NotRequired[list[float]],  # the optimal transport's acceptance of a tree's siblings; empty likewise
        "total_variation": NotRequired[list[float]],  # a lossy rule's from the target, each round; empty likewise
        "kl": NotRequired[list[float]],  # in nats, likewise; may be infinite
        "seconds_prefill": float,
        "seconds_draft": float,
        "seconds_verify": float,
        "seconds_overhead": float,
        "text": NotRequired[str],  # the decoded tokens, added by whoever knows the tokenizer
    },
)


PLACE_COLUMNS = (
    *("pass", "timing_slots", "timed_on", "timed_in", "verifier", "prompt_set", "prompt_key", "category"),
    *("target_temperature", "draft_temperature"),
)
"""What says which cell and which metrics a row belongs to, and which rows it may be compared with."""

METRIC_COLUMNS = (
    *PLACE_COLUMNS,
    *("tokens", "drafted", "tested", "accepted"),
    *("expected_acceptance", "expected_length", "optimum", "total_variation", "kl"),
    *("seconds_prefill", "seconds_draft", "seconds_verify", "seconds_overhead"),
)
"""What any metric reads of a row; of `tokens` only how many they are."""


_FORMER = {"expected": "expected_acceptance", "foreseen": "expected_length"}
"""Columns that earlier versions called otherwise, and today's names."""


def todays_columns(names: Sequence[str]) -> list[str]:
    """Columns of a file, by today's names.

    >>> todays_columns(["key", "expected"])
    ['key', 'expected_acceptance']
    """
    return [_FORMER.get(name, name) for name in names]


def former_columns(names: Sequence[str]) -> str:
    """One line on the columns of a file that have another name today; empty where there are none.

    >>> former_columns(["key", "expected", "foreseen"])
    'rows of an earlier version: reads column expected as expected_acceptance, foreseen as expected_length'
    """
    called = [f"{name} as {_FORMER[name]}" for name in names if name in _FORMER]
    return f"rows of an earlier version: reads column {', '.join(called)}" if called else ""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """What rows are grouped by: one line of the results table.

    Attributes:
        verifier: the user's label, or `BASELINE`.
        prompt_set: the name of the prompt set.
        target_temperature: at least 0.
        draft_temperature: at least 0; the target's for `BASELINE`.
        category: the prompts of one category alone; empty for all of the set.
    """

    verifier: str
    prompt_set: str
    target_temperature: float
    draft_temperature: float
    category: str = ""


def cell_of(row: DecodedRow) -> Cell:
    """The cell that a row belongs to, among those of all categories together."""
    return Cell(row["verifier"], row["prompt_set"], row["target_temperature"], row["draft_temperature"])


def timed_together(row: DecodedRow) -> int:
    """Of a row of the timing pass: how many were decoded together."""
    return row.get("timing_slots") or 1


def at_slots(metric: str, slots: int) -> str:
    """The name of a metric of the timing pass at a batch size: at 1 its own.

    >>> at_slots("speedup", 1), at_slots("speedup", 8)
    ('speedup', 'speedup_at_8')
    """
    return metric if slots == 1 else f"{metric}_at_{slots}"


def category_cell_of(row: DecodedRow) -> Cell:
    """The cell of its own category that a row belongs to."""
    return replace(cell_of(row), category=row["category"])


def row_from_completion(
    completion: Completion,
    *,
    pass_: Pass,
    label: str,
    prompt_set: str,
    prompt_index: int,
    prompt_key: int,
    sample: int,
    key: str,
    category: str = "",
    turn: int = 1,
    timing_slots: int = 0,
    timed: tuple[str, str] = ("", ""),
) -> DecodedRow:
    """The row of a finished request.

    Args:
        completion: what the engine returned.
        pass_: which pass it belongs to.
        label: the verifier's label.
        prompt_set: the name of the prompt set.
        prompt_index: the prompt's place in its set.
        prompt_key: a stable int64 of the prompt's content, which pairs runs over the same prompts.
        sample: which sample of the prompt, from 0.
        key: the item's unique name.
        category: what the prompt is among those of its set.
        turn: which turn of a conversation, from 1.
        timing_slots: of the timing pass, how many rows were decoded together; 0 in the other.
        timed: of the timing pass, on which machine, and when the session began.
    """
    request, seconds = completion.request, completion.seconds
    return {
        "key": key,
        "pass": pass_,
        "verifier": label,
        "prompt_set": prompt_set,
        "prompt_index": prompt_index,
        "prompt_key": prompt_key,
        "category": category,
        "turn": turn,
        "timing_slots": timing_slots,
        "timed_on": timed[0],
        "timed_in": timed[1],
        "sample": sample,
        "target_temperature": request.target_temperature,
        "draft_temperature": request.target_temperature if label == BASELINE else request.proposal_temperature,
        "seed": request.seed,
        "prompt_tokens": len(request.prompt),
        "tokens": list(completion.tokens),
        "finish": completion.finish,
        "drafted": list(completion.drafted),
        "tested": list(completion.tested),
        "accepted": list(completion.accepted),
        "expected_acceptance": list(completion.expected_acceptance),
        "expected_length": list(completion.expected_length),
        "optimum": list(completion.optimum),
        "total_variation": list(completion.total_variation),
        "kl": list(completion.kl),
        "seconds_prefill": seconds.prefill,
        "seconds_draft": seconds.draft,
        "seconds_verify": seconds.verify,
        "seconds_overhead": seconds.overhead,
    }
