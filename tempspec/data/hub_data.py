"""Data sets of the hub: loaded without the libraries' retries, and known by their commit (floor 5)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import datasets
import huggingface_hub.constants
from huggingface_hub import HfApi

from tempspec.errors import UserError
from tempspec.models.hub import HUB_SECONDS, hub_is_silent

__all__ = ["hub_commit", "hub_rows"]

_COMMIT = re.compile(r"(?<=[@/])[0-9a-f]{40}(?=/)")


class HubSource(Protocol):
    """Where data are on the hub."""

    path: str
    name: str | None
    split: str
    revision: str | None


def hub_rows(source: HubSource, cache_dir: str | Path | None) -> datasets.Dataset:
    """A split of a hub dataset. `datasets` runs no script of a dataset.

    Raises:
        UserError: it does not exist, or cannot be had.
    """
    try:
        with _offline() if _asked(source)[0] else nullcontext():
            return datasets.load_dataset(
                source.path,
                source.name,
                split=source.split,
                revision=source.revision,
                cache_dir=None if cache_dir is None else str(cache_dir),
            )
    except (ConnectionError, OSError) as error:
        raise UserError(
            f"{source.path}: no such file or folder here, and no such dataset at the hub (huggingface.co), or the hub "
            "cannot be reached; check the name and the network, or give a local file"
        ) from error
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{source.path}: the hub dataset cannot be used: {reason}; check name, split, revision"
        ) from error


def hub_commit(source: HubSource, cache_dir: str | Path | None) -> str:
    """The commit that a hub dataset is at; of what is in the cache, where the hub is silent.

    Raises:
        UserError: it does not exist, or cannot be had.
    """
    return _asked(source)[1] or _commit_of(hub_rows(source, cache_dir))


def _commit_of(dataset: datasets.Dataset) -> str:
    """The commit that a loaded dataset was fetched at, which its files' addresses hold, and their places here."""
    places = [
        *(dataset.info.download_checksums or {}),
        *(Path(file["filename"]).as_posix() for file in dataset.cache_files),
    ]
    found = next((match[0] for place in places if (match := _COMMIT.search(str(place)))), None)
    return found or str(dataset._fingerprint)  # which `datasets` makes of the files' own digests


def _asked(source: HubSource) -> tuple[bool, str | None]:
    """Whether the hub is silent, and the commit that it names; it is asked once, and quickly."""
    commits: list[str | None] = []

    def ask() -> None:
        info = HfApi().dataset_info(source.path, revision=source.revision, timeout=HUB_SECONDS)
        commits.append(info.sha)

    return hub_is_silent(ask), next(iter(commits), None)


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's own switch for a machine without network, on for a moment."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
