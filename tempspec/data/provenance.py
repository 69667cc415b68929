"""Where generated data come from: a record next to every file of samples names its temperature (floor 5)."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tempspec.files import write_atomically

__all__ = ["Provenance", "now", "versions", "write_provenance"]

FILE = "provenance.json"


def versions() -> dict[str, str]:
    """The installed versions of what decides the samples."""
    return {name: _version(name) for name in ("tempspec", "torch", "lightning", "transformers")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def now() -> str:
    """The time, ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Provenance:
    """The record.

    Attributes:
        target: the model that wrote the responses: its folder or hub name.
        target_revision: its branch, tag or commit, None for a folder.
        weights_digest: SHA-256 over its weight files, None where they are not at hand.
        generation_temperatures: the temperatures that responses were sampled at; each row names its own.
        top_k: 0 kept all.
        top_p: 1 kept all.
        min_p: 0 kept all.
        seed: of the sampling.
        prompt_sets: each prompt set's name with the digest of its file, None for hub data.
        count: responses written.
        target_quantised: how the target's weights are quantised, in words; None for ordinary weights.
        server: where the target was served, under which name, and in which form it was asked; None where it ran here.
        versions: installed versions of the packages that decide the samples.
        date: when the record was made, ISO 8601, UTC.
    """

    target: str
    target_revision: str | None
    weights_digest: str | None
    generation_temperatures: list[float]
    top_k: int
    top_p: float
    min_p: float
    seed: int
    prompt_sets: dict[str, str | None]
    count: int
    target_quantised: str | None = None
    server: dict[str, str] | None = None
    versions: dict[str, str] = field(default_factory=versions)
    date: str = field(default_factory=now)


def write_provenance(folder: str | Path, record: Provenance) -> Path:
    """Write the record into a folder, whole or not at all; returns the file."""
    file = Path(folder) / FILE
    write_atomically(file, json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n")
    return file
