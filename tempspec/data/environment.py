"""What a stage ran with that its configuration does not say: versions, hardware, digests of its data (floor 5)."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tempspec.data.digest import digest_path
from tempspec.data.provenance import now, versions
from tempspec.data.sources import Source
from tempspec.files import write_atomically
from tempspec.models.machine import processor

__all__ = ["ENVIRONMENT_FILE", "data_digests", "describe_environment", "hardware", "write_environment"]

ENVIRONMENT_FILE = "environment.json"


def describe_environment(sources: Mapping[str, Sequence[Source]], **facts: Any) -> dict[str, Any]:
    """What a stage runs with, as of now.

    Args:
        sources: what the stage may read, by a name each.
        facts: anything else that json can write, such as the device.
    """
    return {
        "started": now(),
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(),
        **facts,
        "data": data_digests(sources),
    }


def write_environment(folder: str | Path, environment: Mapping[str, Any]) -> Path:
    """Write `environment.json` into a stage's folder, whole or not at all; returns the file."""
    file = Path(folder) / ENVIRONMENT_FILE
    write_atomically(file, json.dumps(environment, indent=1, ensure_ascii=False) + "\n")
    return file


def data_digests(sources: Mapping[str, Sequence[Source]]) -> dict[str, str | None]:
    """SHA-256 of each local file or folder, None for hub data; several sources of one name are numbered.

    >>> data_digests({"prompts/chat": [Source("some/hub-data")]})
    {'prompts/chat': None}
    """
    return {
        f"{name}/{number}" if len(members) > 1 else name: digest_path(source.file) if source.file.exists() else None
        for name, members in sources.items()
        for number, source in enumerate(members)
    }


def hardware() -> dict[str, Any]:
    """The machine: its processor, cores, memory in GiB, system, and accelerators by name."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _memory_gib() -> float | None:
    """Physical memory, None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
