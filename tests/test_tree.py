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


def test_every_file_names_its_floor():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8").partition("\n\n")[0]
        named = re.search(r"\(floor (\d)(: standard library only)?\)\.", text)
        own = FLOOR[path.relative_to(PACKAGE).with_suffix("").parts[0]]
        face = path == PACKAGE / "__init__.py"  # a page of its own for whoever asks help()
        if not sentence(path) or (not face and (named is None or int(named[1]) != own)):
            wrong.append(f"{path.relative_to(PACKAGE)} (floor {own})")
    assert wrong == []


if __name__ == "__main__":
    print(tree(), end="")
