"""Accepted lengths that a serving engine counted: what vLLM and SGLang write, and a plain list (floor 6).

Four forms are told apart by their content: per-request records (JSON or JSON Lines), counters in Prometheus' text form,
and the periodic lines of either engine's log. Only records of requests have an interval: counters have no parts, and a
log's windows cut requests in two.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tempspec.data.readers import RawRow, rows_of_path
from tempspec.errors import UserError

__all__ = ["EngineLog", "LoggedCounts", "read_engine_log"]

_FORMS = (
    "requests with `accepted`, vLLM's `num_spec_steps` or SGLang's `spec_verify_ct` (.json, .jsonl), vLLM's /metrics, "
    "or a log with `SpecDecoding metrics:` or `accept len:`"
)
_COUNTER = re.compile(
    r"^vllm:spec_decode_num_(drafts|draft_tokens|accepted_tokens)(?:_total)?(?:\{[^}]*\})? (\S+)", re.M
)
_VLLM_LINE = re.compile(
    r"SpecDecoding metrics:.*?Mean acceptance length: ([\d.]+).*?Accepted: (\d+) tokens, Drafted: (\d+) tokens"
)
_SGLANG_LINE = re.compile(r"Decode batch.*?accept len: ([\d.]+)(?:, accept rate: ([\d.]+))?")


@dataclass(frozen=True)
class LoggedCounts:
    """What one request, window or server counted.

    Attributes:
        emitted: tokens, the bonus or correction token of each round included.
        rounds: target calls.
        accepted: drafted tokens accepted; with `drafted` None where the engine does not say.
        drafted: tokens drafted.
    """

    emitted: float
    rounds: float
    accepted: float | None = None
    drafted: float | None = None


@dataclass(frozen=True)
class EngineLog:
    """The content of one file.

    Attributes:
        kind: what wrote it.
        counts: at least one.
        per_request: whether each is a request of its own, so that an interval can be drawn.
    """

    kind: str
    counts: list[LoggedCounts]
    per_request: bool


def read_engine_log(path: str | Path) -> EngineLog:
    """Read a file that an engine wrote.

    Raises:
        UserError: no such file, none of the known forms, or a broken record (with its number).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file; give {_FORMS}")
    if path.suffix.lower() in (".json", ".jsonl"):
        return _of_requests(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    for parse in (_of_counters, _of_vllm_log, _of_sglang_log):
        if (found := parse(text)) is not None:
            return found
    raise UserError(f"{path}: holds no accepted lengths; expected {_FORMS}")


def _of_requests(path: Path) -> EngineLog:
    kinds, counts = set(), []
    for number, row in enumerate(rows_of_path(path), start=1):
        for record in _records(row):
            kind, count = _request(f"{path}: record {number}", record)
            kinds.add(kind)
            counts.append(count)
    if not any(count.rounds for count in counts):
        raise UserError(f"{path}: holds no verified round; expected {_FORMS}")
    return EngineLog(" and ".join(sorted(kinds)), [count for count in counts if count.rounds], per_request=True)


def _records(row: RawRow) -> Iterator[RawRow]:
    """The records in a row: itself, or those inside an engine's whole response."""
    if any(name in row for name in _REQUESTS):
        yield row
        return
    parts = [row.get("metrics"), row.get("meta_info"), row.get("speculative_decoding"), *(row.get("choices") or [])]
    inner = [part for part in [*parts, row.get("speculative_decoding_stats")] if isinstance(part, dict)]
    found = [record for part in inner for record in _records(part)]
    yield from found if found else [row]


def _request(place: str, record: RawRow) -> tuple[str, LoggedCounts]:
    for name, (kind, read) in _REQUESTS.items():
        if name in record:
            try:
                return kind, read(record)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{place}: not a record of {kind} ({error}); repair or drop it") from error
    raise UserError(f"{place}: holds no accepted lengths; expected {', '.join(f'`{name}`' for name in _REQUESTS)}")


def _plain(record: RawRow) -> LoggedCounts:
    """Accepted lengths of a request's rounds, the bonus token excluded; drafted lengths, or one number for all."""
    accepted = [_number(value) for value in record["accepted"]]
    drafted: Any = record.get("drafted")
    if isinstance(drafted, list):
        drafted = sum(_number(value) for value in drafted)
    elif drafted is not None:
        drafted = _number(drafted) * len(accepted)
    return LoggedCounts(
        sum(accepted) + len(accepted), len(accepted), None if drafted is None else sum(accepted), drafted
    )


def _vllm(record: RawRow) -> LoggedCounts:
    """Per-request acceptance of vLLM (`--per-request-spec-decode-metrics`)."""
    rounds, accepted = _number(record["num_spec_steps"]), _number(record["num_accepted_draft_tokens"])
    return LoggedCounts(accepted + rounds, rounds, accepted, _number(record["num_draft_tokens"]))


def _sglang(record: RawRow) -> LoggedCounts:
    """SGLang's `meta_info`: its accepted length is completion tokens over verifications."""
    names = ("spec_accept_token_num", "spec_draft_token_num")
    accepted, drafted = (_number(record[name]) for name in names) if names[1] in record else (None, None)
    return LoggedCounts(_number(record["completion_tokens"]), _number(record["spec_verify_ct"]), accepted, drafted)


_REQUESTS: dict[str, tuple[str, Callable[[RawRow], LoggedCounts]]] = {
    "accepted": ("accepted lengths", _plain),
    "num_spec_steps": ("vLLM requests", _vllm),
    "spec_verify_ct": ("SGLang requests", _sglang),
}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"expected a number of 0 or more, got {value!r}")
    return float(value)


def _of_counters(text: str) -> EngineLog | None:
    """Counters of vLLM since the server's start, summed over its engines."""
    sums = dict.fromkeys(("drafts", "draft_tokens", "accepted_tokens"), 0.0)
    for name, value in _COUNTER.findall(text):
        sums[name] += float(value)
    rounds, drafted, accepted = sums.values()
    return (
        EngineLog("vLLM counters", [LoggedCounts(accepted + rounds, rounds, accepted, drafted)], False)
        if rounds
        else None
    )


def _of_vllm_log(text: str) -> EngineLog | None:
    """A window counts by the tokens that it drafted: its rounds are not written."""
    counts = [
        LoggedCounts(float(length) * int(drafted), int(drafted), int(accepted), int(drafted))
        for length, accepted, drafted in _VLLM_LINE.findall(text)
    ]
    return EngineLog(f"vLLM log, {len(counts)} windows", counts, False) if counts else None


def _of_sglang_log(text: str) -> EngineLog | None:
    """Every window counts the same: nothing says how long it was."""
    counts = [
        LoggedCounts(float(length), 1, float(rate) if rate else None, 1 if rate else None)
        for length, rate in _SGLANG_LINE.findall(text)
    ]
    return EngineLog(f"SGLang log, {len(counts)} windows", counts, False) if counts else None
