"""Accepted lengths in the answers of engines: whole, streamed, as records cut out, or of a benchmark (floor 6)."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tempspec.cli.import_results.counts import ONLY_DRAFTING, EngineLog, LoggedCounts, at_least, number, of_vllm
from tempspec.errors import UserError

__all__ = ["RECORDS", "of_responses", "streamed"]

Row = Mapping[str, Any]


def of_responses(path: str, rows: Iterable[Row]) -> EngineLog | None:
    """The counts of every answer; None where none verified a round.

    Args:
        path: for messages.
        rows: answers, or records of them.

    Raises:
        UserError: an answer without counts, or with broken ones.
    """
    kinds, counts, whole = set(), [], True
    for position, row in enumerate(rows, start=1):
        place = f"{path}: record {position}"
        if "spec_decode_num_drafts" in row:
            return EngineLog("vLLM bench", [_counted(place, "vLLM bench", _bench, row)], False)
        for record in _records(place, row):
            kind, read = next(RECORDS[name] for name in RECORDS if name in record)
            kinds.add(kind)
            counts.append(_counted(place, kind, read, record))
            whole &= kind != VLLM or "completion_tokens" in record
    drawn = [count for count in counts if count.rounds]
    return EngineLog(" and ".join(sorted(kinds)), drawn, True, "" if whole else ONLY_DRAFTING) if drawn else None


def _counted(place: str, kind: str, read: Callable[[Row], LoggedCounts], record: Row) -> LoggedCounts:
    try:
        return read(record)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place}: not a record of {kind} ({error}); repair or drop it") from error


def _records(place: str, row: Row) -> Iterator[Row]:
    """The records in a row: itself, or those of an engine's whole answer with its number of tokens.

    Raises:
        UserError: there is none; the message says what the engine has to be told.
    """
    if any(name in row for name in RECORDS):
        yield row
        return
    choices = [choice for choice in row.get("choices") or [] if isinstance(choice, Mapping)]
    metrics = row.get("metrics")
    inner = metrics.get("speculative_decoding") if isinstance(metrics, Mapping) else None
    names = ("speculative_decoding", "meta_info", "speculative_decoding_stats", "timings")
    parts = [inner, *(row.get(name) for name in names)]
    parts += [choice.get(name) for choice in choices for name in ("speculative_decoding_stats", "meta_info")]
    found = [part for part in parts if isinstance(part, Mapping) and any(name in part for name in RECORDS)]
    if not found:
        raise UserError(_nothing(place, row))
    tokens = (row.get("usage") or {}).get("completion_tokens")
    known = {} if tokens is None or len(found) > 1 else {"completion_tokens": tokens, "sequences": max(1, len(choices))}
    yield from ({**known, **part} for part in found)


def _nothing(place: str, row: Row) -> str:
    """What an answer without counts lacks."""
    if "choices" in row:
        return (
            f"{place}: an answer without metrics.speculative_decoding; start vLLM with "
            "--per-request-spec-decode-metrics summary, and ask for one completion per request"
        )
    return f"{place}: holds no accepted lengths; expected {', '.join(f'`{name}`' for name in RECORDS)}"


def streamed(text: str) -> list[Row]:
    """The last pieces of streamed answers, those with counts; the last piece of one that has none.

    Raises:
        ValueError: a piece is not JSON.
    """
    pieces = [
        json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:") and line[5:].strip()[:1] == "{"
    ]
    last = {piece.get("id"): piece for piece in pieces}
    told = {piece.get("id"): piece for piece in pieces if isinstance(piece.get("metrics"), Mapping)}
    return list({**last, **told}.values())


def _plain(record: Row) -> LoggedCounts:
    """Accepted lengths of a request's rounds, the bonus token excluded; drafted lengths, or one number for all."""
    accepted = [number(value) for value in record["accepted"]]
    drafted: Any = record.get("drafted")
    drafting = len(accepted)
    if isinstance(drafted, list):
        drafting = sum(number(value) > 0 for value in drafted)
        drafted = sum(number(value) for value in drafted)
    elif drafted is not None:
        drafted = number(drafted) * len(accepted)
    longest = int(max(accepted, default=0))
    reached = tuple(float(sum(value >= position for value in accepted)) for position in range(1, longest + 1))
    emitted = sum(accepted) + len(accepted)
    return LoggedCounts(emitted, len(accepted), None if drafted is None else sum(accepted), drafted, drafting, reached)


def _vllm(record: Row) -> LoggedCounts:
    """Per-request acceptance of vLLM (`--per-request-spec-decode-metrics`)."""
    names = ("num_spec_steps", "num_accepted_draft_tokens", "num_draft_tokens")
    tokens = record.get("completion_tokens")
    requests = number(record.get("sequences", 1))
    written = None if tokens is None else number(tokens) - requests
    rounds, accepted, drafted = (number(record[name]) for name in names)
    by_position = at_least(record.get("acceptance_histogram") or [])
    return of_vllm(rounds, accepted, drafted, by_position, written=written, requests=requests)


def _sglang(record: Row) -> LoggedCounts:
    """SGLang's `meta_info`: its accepted length is completion tokens over verifications."""
    accepted, drafted = (_first(record, names) for names in _SGLANG_TOKENS)
    rounds = number(record["spec_verify_ct"])
    histogram: list[Any] = next((record[name] for name in _SGLANG_HISTOGRAMS if record.get(name)), [])
    by_position = at_least(histogram)
    told = accepted if drafted is not None else None
    drafting = rounds if by_position else 0.0
    return LoggedCounts(number(record["completion_tokens"]), rounds, told, drafted, drafting, by_position)


_SGLANG_HISTOGRAMS = ("spec_accept_histogram", "spec_correct_drafts_histogram")
_SGLANG_TOKENS = (
    ("spec_accept_token_num", "spec_num_correct_drafts"),
    ("spec_draft_token_num", "spec_num_proposed_drafts"),
)
"""Its names, former and later."""


def _llama_cpp(record: Row) -> LoggedCounts:
    """`timings` of llama.cpp: every target call after the first writes one token beside those that it accepts.

    >>> _llama_cpp({"predicted_n": 200, "draft_n": 347, "draft_n_accepted": 65})
    LoggedCounts(emitted=199.0, rounds=134.0, accepted=65.0, drafted=347.0, drafting=0.0, by_position=())
    """
    accepted, drafted = number(record["draft_n_accepted"]), number(record["draft_n"])
    rounds = max(number(record["predicted_n"]) - 1 - accepted, 1.0)  # tokens after a stop are accepted, not written
    return LoggedCounts(accepted + rounds, rounds, accepted, drafted)


def _first(record: Row, names: tuple[str, ...]) -> float | None:
    return next((number(record[name]) for name in names if name in record), None)


def _bench(record: Row) -> LoggedCounts:
    """What `vllm bench serve --save-result` keeps: sums over the benchmark."""
    rounds = number(record["spec_decode_num_drafts"])
    rates = record.get("spec_decode_per_position_acceptance_rates") or []
    reached = tuple(number(rate) * rounds for rate in rates)
    accepted, drafted = (number(record[f"spec_decode_{name}_tokens"]) for name in ("accepted", "draft"))
    requests = number(record["completed"])
    written = number(record["total_output_tokens"]) - requests
    return of_vllm(rounds, accepted, drafted, reached, written=written, requests=requests)


VLLM = "vLLM requests"
RECORDS: dict[str, tuple[str, Callable[[Row], LoggedCounts]]] = {
    "accepted": ("accepted lengths", _plain),
    "num_spec_steps": (VLLM, _vllm),
    "spec_verify_ct": ("SGLang requests", _sglang),
    "draft_n": ("llama.cpp requests", _llama_cpp),
}
"""What tells a record by its fields: what wrote it, and how it is read."""
