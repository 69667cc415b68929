"""The order of the tests, and the quick set: `pytest -m quick` reads and runs its folders alone.

Each file is run by one process (`--dist loadfile` in pyproject.toml), and those of `LONG` are begun first: a long file
that is begun last would leave the other processes without work.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
QUICK = {"core", "interfaces", "metrics", "plugins", "test_floors.py", "test_names.py"}
LONGER = {"test_verifiers.py", "test_tree_verifiers.py", "test_distributed.py"}
"""Files of these folders that take most of a minute: every verifier's laws enumerated or sampled, and two processes."""
LONG = (
    "tests/modules/fit/test_memory.py",
    "tests/cli/test_two_processes.py",
    "tests/cli/study/test_study.py",
    "tests/cli/study/test_growth.py",
    "tests/modules/predict/test_sweep_runner.py",
    "tests/test_documents.py",
    "tests/decoding/test_trees.py",
    "tests/decoding/test_engine.py",
)
"""The files that take longest."""
MARKED = {"slow", "gpu", "browser", "engines"}


def is_quick(path: Path) -> bool:
    """Whether a file or a folder belongs to the quick set, or leads to it."""
    parts = path.relative_to(ROOT).parts if path.is_relative_to(ROOT) else ("elsewhere", "")
    return len(parts) < 2 or (parts[1] in QUICK and path.name not in LONGER)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave unread what could not be chosen: reading all tests would take most of the quick set's minute."""
    return True if config.option.markexpr == "quick" and not is_quick(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is quick, which pytest selects by only then; and begin with what is long."""
    for item in items:
        if is_quick(item.path) and not MARKED & {marker.name for marker in item.iter_markers()}:
            item.add_marker("quick")
    place = {path: number for number, path in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONG)))
