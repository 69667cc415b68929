"""`import tempspec`: what it lists, what it costs, what it says of a name that is not there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tempspec
from tempspec import registry
from tempspec.registry import scan

PROMISED = {
    *("DistillationModule", "LanguageModelModule", "TextDataModule", "Source", "PromptSource", "Sweep", "Engine"),
    *("Request", "Completion", "SweepMetrics", "DecodingMetrics", "load_draft", "decode", "AcceptanceCallback"),
    *("AcceptanceTrainerCallback", "ModelOptions", "UserError", "__version__"),
}


def test_the_face_is_listed_with_every_plugin():
    listed = set(dir(tempspec))
    assert listed >= PROMISED | {plugin.name for plugin in scan()}
    assert set(tempspec.__all__) <= listed


def test_every_listed_name_is_there():
    assert all(getattr(tempspec, name) is not None for name in tempspec.__all__)
    assert tempspec.Uniform(0.5, 1.5).low == 0.5


def test_type_checkers_see_what_is_listed():
    tree = ast.parse(Path(tempspec.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    seen = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    built_in = {plugin.name for plugin in scan() if plugin.distribution == "tempspec"}
    assert set(seen) == built_in | set(tempspec._PLACES)
    for name, (module, original) in seen.items():
        assert getattr(sys.modules[module], original) is getattr(tempspec, name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DistilationModule", "did you mean 'DistillationModule'"),
        ("Unifrom", "did you mean 'Uniform'"),
        ("xyzzy", "dir"),
        ("__wrapped__", "no attribute"),
    ],
)
def test_an_unknown_name_is_an_attribute_error_with_a_hint(name, hint):
    with pytest.raises(AttributeError, match=hint):
        getattr(tempspec, name)


def test_importing_and_listing_import_nothing_heavy():  # benchmarks/install.py takes the time
    code = """
import sys
import tempspec
assert "DistillationModule" in dir(tempspec) and "Uniform" in dir(tempspec)
print("torch" in sys.modules, "lightning" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_name_that_is_not_there_is_looked_up_once(monkeypatch):
    scans = []
    monkeypatch.setattr(registry, "scan", lambda found=registry.scan: scans.append(1) or found())
    monkeypatch.setattr(sys, "path", [*sys.path, "/nowhere/else"])  # nobody has asked with this path before
    for name in ("Nothing", "NothingElse", "Nothing"):
        assert not hasattr(tempspec, name)
    assert len(scans) == 1
