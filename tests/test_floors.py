"""A file imports only lower floors and its own folder; floor 0 imports the standard library only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tempspec

PACKAGE = Path(tempspec.__file__).parent
# Each house is a folder, or files of the package's root that belong together.
FLOORS: tuple[tuple[frozenset[str], ...], ...] = (
    (frozenset({"", "registry", "errors", "files", "own_yaml"}),),
    (frozenset({"core"}),),
    (frozenset({"interfaces"}),),
    (frozenset({"models"}), frozenset({"plugins"}), frozenset({"testing"})),
    (frozenset({"decoding"}), frozenset({"metrics"})),
    (frozenset({"modules"}), frozenset({"data"}), frozenset({"reporting"})),
    (frozenset({"cli", "__main__"}), frozenset({"one_call"})),
)
FLOOR = {member: floor for floor, houses in enumerate(FLOORS) for house in houses for member in house}
HOUSE = {member: house for houses in FLOORS for house in houses for member in house}


def imports(path: Path, package: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, anywhere in it; `from a import b` counts as a.b."""
    parents = (package.name, *path.relative_to(package).parent.parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path == package / "__init__.py":  # the face names everything for type checkers, and imports it when it is used
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and _for_type_checkers(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(parents[: len(parents) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _for_type_checkers(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def member(dotted: str) -> str:
    """What stands for a module of the package in the table: its first part, or '' for the package itself."""
    part = (*dotted.split("."), "")[1]
    return part if part in FLOOR else ""


def violations(package: Path) -> list[str]:
    """Every import that goes up, or across a floor to another house."""
    found = []
    for path in sorted(package.rglob("*.py")):
        own = path.relative_to(package).with_suffix("").parts[0].removesuffix("__init__")
        for name in imports(path, package):
            if name.partition(".")[0] == "tempspec":
                other = member(name)
                if FLOOR[other] > FLOOR[own] or (FLOOR[other] == FLOOR[own] and HOUSE[other] != HOUSE[own]):
                    found.append(
                        f"{path.relative_to(package)} (floor {FLOOR[own]}) imports {name} (floor {FLOOR[other]})"
                    )
    return found


WINGS = ("fit", "validate", "predict")
"""Folders of modules/, one for each thing that a run does; what two of them need lies above them."""
CATALOGUES = {"plugins/divergences.py", "plugins/schedules.py"}
"""Files that are read one class at a time; all others are read from top to bottom."""


def crossings(package: Path) -> list[str]:
    """Every import from one wing into another."""
    found = []
    for wing in WINGS:
        others = tuple(f"tempspec.modules.{other}." for other in WINGS if other != wing)
        for path in sorted((package / "modules" / wing).rglob("*.py")):
            into = [name for name in imports(path, package) if f"{name}.".startswith(others)]
            found += [f"{path.relative_to(package)} imports {name}" for name in into]
    return found


def options(path: Path) -> dict[str, int]:
    """How many options each class of a file has of its own: the arguments of its `__init__`, or a dataclass' fields."""
    counted = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            fields = [one for one in node.body if isinstance(one, ast.AnnAssign) and not one.target.id.startswith("_")]
            counted[node.name] = len(fields) if node.decorator_list else 0
            makers = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
            for maker in makers:
                counted[node.name] = len(maker.args.args) + len(maker.args.kwonlyargs) - 1
    return counted


def test_wings_of_modules_do_not_import_each_other():
    assert crossings(PACKAGE) == []


@pytest.mark.parametrize(("name", "found"), [("tempspec.modules.predict.pulse", 1), ("tempspec.modules.fit.loss", 0)])
def test_a_wing_that_imports_another_is_found(tmp_path, name, found):
    package = tmp_path / "tempspec"
    (package / "modules/fit").mkdir(parents=True)
    (package / "modules/fit/a.py").write_text(f"import {name}")
    assert len(crossings(package)) == found


def test_no_file_is_longer_than_450_lines_but_catalogues():
    long = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.read_text().count("\n") > 450}
    assert long <= CATALOGUES


def test_no_class_takes_more_than_15_options_of_its_own():
    assert {name: count for path in PACKAGE.rglob("*.py") for name, count in options(path).items() if count > 15} == {}


def test_no_import_goes_up_or_across():
    assert violations(PACKAGE) == []


def test_every_part_of_the_package_has_a_floor():
    parts = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir()}
    parts -= {"__pycache__", "py.typed"}
    assert {part.removesuffix("__init__") for part in parts} <= set(FLOOR)


@pytest.mark.parametrize("name", ["__init__.py", "registry.py", "errors.py", "files.py"])
def test_the_ground_floor_needs_the_standard_library_only(name):
    outside = {module.partition(".")[0] for module in imports(PACKAGE / name, PACKAGE)} - {"tempspec"}
    assert outside <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "module", ["tempspec", "tempspec.registry", "tempspec.errors", "tempspec.files", "tempspec.own_yaml"]
)
def test_the_ground_floor_is_imported_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("path", "text", "ups"),
    [
        ("core/a.py", "from tempspec.interfaces import Draft", 1),
        ("core/a.py", "import tempspec.plugins.verifiers", 1),
        ("core/a.py", "from tempspec import interfaces, errors", 1),
        ("core/a.py", "def late():\n    from tempspec.decoding.engine import Engine", 1),
        ("core/a.py", "from ..plugins import verifiers", 1),
        ("core/a.py", "from .. import plugins", 1),
        ("core/deep/a.py", "from ...plugins import verifiers", 1),
        ("registry.py", "from tempspec import core", 1),
        ("__init__.py", "from .core import noise", 1),
        ("__init__.py", "from . import errors", 0),
        ("__init__.py", "if TYPE_CHECKING:\n    from tempspec.core import noise", 0),
        ("__init__.py", "if not TYPE_CHECKING:\n    from tempspec.core import noise", 1),
        ("core/a.py", "if TYPE_CHECKING:\n    from tempspec.interfaces import Draft", 1),
        ("interfaces/a.py", "import tempspec.cli", 1),
        ("data/a.py", "from tempspec.modules.distillation import DistillationModule", 1),
        ("decoding/a.py", "import tempspec.metrics", 1),
        (
            "data/a.py",
            "from tempspec.data.rows import rows\nfrom . import split\nfrom tempspec import core, __version__",
            0,
        ),
        ("__main__.py", "from tempspec.cli import main", 0),
        ("cli/a.py", "from tempspec.modules import distillation\nimport torch", 0),
    ],
)
def test_the_walk_sees_what_it_should(tmp_path, path, text, ups):
    package = tmp_path / "tempspec"
    (package / path).parent.mkdir(parents=True)
    (package / path).write_text(text)
    assert len(violations(package)) == ups
