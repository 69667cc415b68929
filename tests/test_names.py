"""The names of tests are short enough to be read in a list of failures."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 60


def too_long(folder):
    """The names of test functions below a folder that are longer."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py")))
    functions = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [one.name for one in functions if one.name.startswith("test_") and len(one.name) > LONGEST]


@pytest.mark.parametrize("folder", ["tests", "examples"])
def test_no_test_has_a_name_of_more_than_60_characters(folder):
    assert too_long(ROOT / folder) == []


@pytest.mark.parametrize(("length", "found"), [(60, 0), (61, 1)])
def test_a_name_of_61_characters_is_found(tmp_path, length, found):
    (tmp_path / "test_a.py").write_text(f"class TestAll:\n    def test_{'a' * (length - 5)}(self):\n        pass\n")
    assert len(too_long(tmp_path)) == found
