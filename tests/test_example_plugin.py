"""The package that third parties copy: it stays within what is public, and passes its own tests when installed."""

import ast
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import EXAMPLE

PUBLIC = ("tempspec.interfaces", "tempspec.core", "tempspec.testing")


def imported(path):
    """The modules of tempspec that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in getattr(node, "names", ())]
        yield from (name for name in names if name is not None and name.partition(".")[0] == "tempspec")


@pytest.mark.parametrize("path", sorted(EXAMPLE.rglob("*.py")), ids=lambda path: str(path.relative_to(EXAMPLE)))
def test_it_imports_nothing_of_tempspec_but_what_is_public(path):
    assert [name for name in imported(path) if not name.startswith(PUBLIC)] == []


@pytest.mark.slow
def test_it_passes_its_own_tests_as_an_installed_package(plugin_package, tmp_path):
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(plugin_package)}
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
