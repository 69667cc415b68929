"""docs/tree.md is the package as it is: every file with the first line of its docstring.

python tests/test_tree.py > docs/tree.md
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tempspec"
FLOORS = {0: ("__init__", "registry", "errors", "files", "own_yaml"), 1: ("core",), 2: ("interfaces",)}
FLOORS |= {3: ("models", "plugins", "testing"), 4: ("decoding", "metrics"), 5: ("modules", "data", "reporting")}
FLOORS |= {6: ("cli", "__main__", "one_call")}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}


def sentence(path):
    """The first sentence of a file's docstring, without its floor."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return re.sub(r" \(floor \d[^)]*\)", "", first)


def tree():
    lines = ["# The tree", "", "Every file of the package and what it is for."]
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path.name)):
        place = path.relative_to(ROOT)
        if path.name == "__init__.py":
            lines += ["", f"## {place.parent}/", "", sentence(path), ""]
        else:
            lines.append(f"- `{path.name}`: {sentence(path)}")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def test_the_page_is_the_tree():
    written = (ROOT / "docs/tree.md").read_text(encoding="utf-8")
    assert written == tree(), "write it again: python tests/test_tree.py > docs/tree.md"


def test_a_file_that_names_its_floor_names_the_right_one():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        named = re.search(r"\(floor (\d)", path.read_text(encoding="utf-8")[:400])
        own = FLOOR[path.relative_to(PACKAGE).with_suffix("").parts[0]]
        if not sentence(path) or (named is not None and int(named[1]) != own):
            wrong.append(f"{path.relative_to(PACKAGE)} (floor {own})")
    assert wrong == []


if __name__ == "__main__":
    print(tree(), end="")
