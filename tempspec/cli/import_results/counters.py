"""Counters of vLLM and llama.cpp in Prometheus' text form, since their start or between two moments (floor 6)."""

import re

from tempspec.cli.import_results.counts import ONLY_DRAFTING, EngineLog, of_vllm
from tempspec.errors import UserError

__all__ = ["difference", "of_counters", "scraped"]

_LINE = re.compile(r"^(?:vllm|llamacpp):(\w+?)(?:_total)?(?:\{([^}]*)\})? (\S+)$", re.M)
"""Both write the same names; llama.cpp does with `--metrics`."""
_POSITION = re.compile(r'position="(\d+)"')
_ALONE = (
    *("spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"),
    *("generation_tokens", "request_success"),
)
_BY_POSITION = "spec_decode_num_accepted_tokens_per_pos"


def scraped(text: str) -> dict[str, float]:
    """The counters of a page that concern speculation, summed over engines and models; by position as `name 0`.

    >>> scraped('vllm:spec_decode_num_drafts_total{engine="0"} 4.0')
    {'spec_decode_num_drafts': 4.0}
    >>> scraped('llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 3')
    {'spec_decode_num_accepted_tokens_per_pos 0': 3.0}
    """
    found: dict[str, float] = {}
    for name, labels, value in _LINE.findall(text):
        position = _POSITION.search(labels)
        key = f"{name} {position.group(1)}" if name == _BY_POSITION and position else name
        if name in _ALONE or (name == _BY_POSITION and position):
            found[key] = found.get(key, 0.0) + float(value)
    return found


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was counted in between.

    Raises:
        UserError: a counter fell: the server was started anew.
    """
    fallen = [name for name, value in before.items() if after.get(name, 0.0) < value]
    if fallen:
        raise UserError(f"expected counters that grow, got a lower {fallen[0]} in the second file: exchange the two")
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def of_counters(counters: dict[str, float]) -> EngineLog | None:
    """Counters as counts; None where nothing was drafted."""
    drafts, drafted, accepted = (counters.get(name, 0.0) for name in _ALONE[:3])
    if not drafts:
        return None
    positions = sorted(int(name.split()[1]) for name in counters if name.startswith(f"{_BY_POSITION} "))
    reached = tuple(counters[f"{_BY_POSITION} {position}"] for position in positions)
    tokens, finished = (counters.get(name) for name in _ALONE[3:])
    written = None if tokens is None or finished is None else tokens - finished
    note = ONLY_DRAFTING.replace("completion_tokens", "generation_tokens") if written is None else ""
    counts = of_vllm(drafts, accepted, drafted, reached, written=written, requests=finished or 1.0)
    return EngineLog("engine's counters", [counts], False, note)
