"""Every test can fail: it asserts, expects an error or a warning, or calls a check of the conformance kit."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASSERTING = ("raises", "warns", "assert_close", "assert_allclose")


def asserts(test):
    """Whether a test function has an assertion of its own."""
    calls = [node.func for node in ast.walk(test) if isinstance(node, ast.Call)]
    names = [call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls]
    checks = any(name in ASSERTING or name.startswith("check_") for name in names)
    return checks or any(isinstance(node, ast.Assert) for node in ast.walk(test))


def without_assertion(folder):
    """The test functions below a folder that nothing can fail."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("test_*.py")))
    functions = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [one.name for one in functions if one.name.startswith("test_") and not asserts(one)]


@pytest.mark.parametrize("folder", ["tests", "examples"])
def test_every_test_asserts(folder):
    assert without_assertion(ROOT / folder) == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("print(1)", 1),
        ("helper(1)", 1),
        ("assert 1", 0),
        ("check_drafter(1)", 0),
        ("torch.testing.assert_close(1, 1)", 0),
        ("with pytest.raises(ValueError): f()", 0),
    ],
)
def test_a_test_without_assertion_is_found(tmp_path, body, found):
    (tmp_path / "test_a.py").write_text(f"def test_it():\n    {body}\n")
    assert len(without_assertion(tmp_path)) == found
