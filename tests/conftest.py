"""Real third-party packages for the tests of registry and command line; how many examples a property gets."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests have a process for each core

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same few examples every time, so that the suite stays quick; --hypothesis-profile=long looks for new ones.
settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=2000, deadline=None)
settings.load_profile("quick")

TESTS = Path(__file__).parent
EXAMPLE = TESTS.parent / "examples" / "tempspec-plugin"
collect_ignore = ["broken_plugin_package"]  # installed by a fixture, not collected


def install(folder: Path, source: Path) -> Path:
    """Install a package's sources as a user would, offline, into a folder for PYTHONPATH."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "install"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--target", str(folder), str(source)], check=True)
    return folder


@pytest.fixture(scope="session")
def plugin_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with tempspec-example: `Renyi`, `LogUniform` and `SpecVerification`."""
    return install(tmp_path_factory.mktemp("example"), EXAMPLE)


@pytest.fixture(scope="session")
def broken_plugin_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with tempspec-broken 0.0.7: divergence `Broken`, whose import raises."""
    return install(tmp_path_factory.mktemp("broken"), TESTS / "broken_plugin_package")
