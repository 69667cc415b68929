"""Data of the hub: known by their commit, asked for once."""

from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest

from tempspec.data.sources import Source, source_digest

COMMITS = ["e53f048856ff4f594e959d75785d2c2d37b678ee", "0123456789abcdef0123456789abcdef01234567"]


@pytest.fixture
def hub(monkeypatch):
    """A hub at a commit, or silent; counts what is loaded from it."""
    state = SimpleNamespace(commit=COMMITS[0], cached=COMMITS[0], loaded=0)

    def info(*args, **options):
        if state.commit is None:
            raise OSError("no route to host")
        return SimpleNamespace(sha=state.commit)

    def load(*args, **options):
        state.loaded += 1
        found = datasets.Dataset.from_list([{"text": "a"}])
        found.info.download_checksums = {f"hf://datasets/x/y@{state.cached}/main/train.parquet": {"num_bytes": 1}}
        return found

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return state


def test_hub_data_are_known_by_their_commit_and_not_read(hub):
    first = source_digest(Source("x/y"))
    assert source_digest(Source("x/y")) == first != source_digest(Source("x/z"))
    hub.commit = COMMITS[1]
    assert source_digest(Source("x/y")) != first
    assert hub.loaded == 0


def test_without_network_the_cache_says_the_same_commit(hub):
    online = source_digest(Source("x/y"))
    hub.commit = None
    assert source_digest(Source("x/y")) == online
    hub.cached = COMMITS[1]
    assert source_digest(Source("x/y")) != online


def test_a_cache_that_names_no_commit_has_a_print_of_its_own(hub):
    hub.commit, hub.cached = None, "main"
    assert source_digest(Source("x/y")) == source_digest(Source("x/y"))
