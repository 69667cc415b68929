"""Accepted lengths that a serving engine counted, from any file that vLLM, SGLang or llama.cpp writes (floor 6).

Forms are distinguished by their content: answers and records (JSON, JSON Lines, streamed), counters in Prometheus' text
form, and the periodic lines of either engine's log. Only requests have an interval: counters have no parts, and a log's
windows cut requests in two.
"""

import re
from collections.abc import Callable
from pathlib import Path

from tempspec.cli.import_results.counters import difference, of_counters, scraped
from tempspec.cli.import_results.counts import ONLY_DRAFTING, EngineLog, LoggedCounts
from tempspec.cli.import_results.responses import of_responses, streamed
from tempspec.data.readers import rows_of_path
from tempspec.errors import UserError

__all__ = ["read_engine_log"]

_FORMS = (
    "requests with `accepted`, vLLM's `num_spec_steps`, SGLang's `spec_verify_ct` or llama.cpp's `draft_n` (.json, "
    ".jsonl, or streamed), a result of `vllm bench serve`, /metrics of vLLM or llama.cpp, or a log with "
    "`SpecDecoding metrics:`, `accept len:` or `draft acceptance =`"
)
_ACCEPTED = r"Accepted: (?P<accepted>\d+) tokens, Drafted: (?P<drafted>\d+) tokens"
_VLLM_LINE = re.compile(
    rf"SpecDecoding metrics:.*?Mean acceptance length: (?P<length>[\d.]+).*?{_ACCEPTED}"
    r"(?:, Per-position acceptance rate: (?P<rates>[\d.]+(?:, [\d.]+)*))?"
)
_VLLM_LINE_OF_0_8 = re.compile(rf"SpecDecoding metrics: Draft acceptance rate: [\d.]+%, {_ACCEPTED}")
_FORMER_VLLM_LINE = re.compile(
    r"Speculative metrics:.*?Number of speculative tokens: (\d+), Number of accepted tokens: \d+, Number of draft "
    r"tokens: (\d+), Number of emitted tokens: (\d+)"
)
_SGLANG_LINE = re.compile(r"Decode batch.*?accept len: ([\d.]+)(?:, accept rate: ([\d.]+))?")
_LLAMA_LINE = re.compile(
    r"draft acceptance(?: rate)? = [\d.]+ \( *(?P<accepted>\d+) accepted / *(?P<drafted>\d+) generated\)"
    r"(?:, mean len = *(?P<length>[\d.]+))?"
)


def read_engine_log(path: str | Path, before: str | Path | None = None) -> EngineLog:
    """Read a file that an engine wrote.

    Args:
        path: the file.
        before: an earlier page of the same counters, which are counted from there on.

    Raises:
        UserError: no such file, none of the known forms, or a broken record (with its number).
    """
    path = _file(path)
    if path.suffix.lower() in (".json", ".jsonl"):
        found = _of_json(path)
    else:
        text = _text(path)
        earlier = {} if before is None else scraped(_text(_file(before)))
        found = next(filter(None, (parse(text) for parse in _parsers(str(path), earlier))), None)
    if found is None:
        raise UserError(f"{path}: holds no accepted lengths; expected {_FORMS}")
    return found


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file; give {_FORMS}")
    return path


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _of_json(path: Path) -> EngineLog | None:
    found = of_responses(str(path), rows_of_path(path))
    if found is None:
        raise UserError(f"{path}: holds no verified round; expected {_FORMS}")
    return found


def _parsers(path: str, earlier: dict[str, float]) -> list[Callable[[str], EngineLog | None]]:
    """One a form; each returns None of another form."""

    def counters(text: str) -> EngineLog | None:
        return of_counters(difference(earlier, scraped(text)))

    def stream(text: str) -> EngineLog | None:
        try:
            return of_responses(path, streamed(text))
        except ValueError as error:
            raise UserError(
                f"{path}: a piece of a stream is not JSON ({error}); save the stream as it comes"
            ) from error

    return [stream, counters, _of_vllm_log, _of_vllm_0_8_log, _of_former_vllm_log, _of_sglang_log, _of_llama_log]


def _of_vllm_log(text: str) -> EngineLog | None:
    """A window counts by the tokens that it drafted: its rounds are not written."""
    counts = []
    for line in _VLLM_LINE.finditer(text):
        weight, accepted = float(line["drafted"]), float(line["accepted"])
        reached = tuple(float(rate) * weight for rate in (line["rates"] or "").split(", ") if rate)
        emitted = float(line["length"]) * weight
        counts.append(LoggedCounts(emitted, weight, accepted, weight, weight if reached else 0.0, reached))
    return EngineLog(f"vLLM log, {len(counts)} windows", counts, False, ONLY_DRAFTING) if counts else None


def _of_vllm_0_8_log(text: str) -> EngineLog | None:
    """Lines without a length: nothing is known of rounds."""
    lines = list(_VLLM_LINE_OF_0_8.finditer(text))
    counts = [LoggedCounts(0.0, 0.0, float(line["accepted"]), float(line["drafted"])) for line in lines]
    return EngineLog(f"vLLM 0.8 log, {len(counts)} windows", counts, False) if counts else None


def _of_former_vllm_log(text: str) -> EngineLog | None:
    """Counts since the start, so the last line has all. Its accepted tokens include some after a rejection."""
    lines = _FORMER_VLLM_LINE.findall(text)
    if not lines:
        return None
    longest, drafted, emitted = map(float, lines[-1])
    rounds = drafted / longest
    return EngineLog("vLLM log before 0.8", [LoggedCounts(emitted, rounds, emitted - rounds, drafted)], False)


def _of_sglang_log(text: str) -> EngineLog | None:
    """Every window counts the same: nothing says how long it was."""
    counts = [
        LoggedCounts(float(length), 1, float(rate) if rate else None, 1 if rate else None)
        for length, rate in _SGLANG_LINE.findall(text)
    ]
    return EngineLog(f"SGLang log, {len(counts)} windows", counts, False) if counts else None


def _of_llama_log(text: str) -> EngineLog | None:
    """A request counts by the tokens that it drafted: its rounds are not written. Former lines have no length."""
    counts = []
    for line in _LLAMA_LINE.finditer(text):
        accepted, drafted = float(line["accepted"]), float(line["drafted"])
        weight = drafted if line["length"] else 0.0
        counts.append(LoggedCounts(float(line["length"] or 0) * weight, weight, accepted, drafted))
    return EngineLog(f"llama.cpp log, {len(counts)} requests", counts, True) if counts else None
