"""What the site has besides docs/: the API from the docstrings, and the repository's files that a page links to.

A hook of mkdocs. Links out of docs/ lead to these pages; the Markdown itself is not changed.
"""

import re
from pathlib import Path
from posixpath import relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")
DOCUMENTS = {
    "CONTRIBUTING.md": "project/CONTRIBUTING.md",
    "CHANGELOG.md": "project/CHANGELOG.md",
    "README.md": "README.md",
    "benchmarks/RESULTS.md": "project/RESULTS.md",
    "benchmarks/LOG.md": "project/LOG.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the documents, and every other file of the repository that a page links to."""
    for place, page in DOCUMENTS.items():
        if page.startswith("project/"):
            files.append(File.generated(config, page, content=(ROOT / place).read_text(encoding="utf-8")))
    files.append(File.generated(config, "api.md", content=_api()))
    texts = {page: files.get_file_from_path(page).content_string for page in _pages(files)}
    linked = {target for page, text in texts.items() for target, _ in _links(page, text)}
    for place in sorted(linked - set(DOCUMENTS)):
        if (ROOT / place).is_file():
            files.append(File.generated(config, _shown(place), content=_code(place)))
        elif (ROOT / place).is_dir():
            files.append(File.generated(config, _shown(place), content=_listing(place)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to the pages that show what they name."""
    own = page.file.src_uri

    def led(match: re.Match[str]) -> str:
        place = _place(own, match[1])
        if place is None:
            return match[0]
        target = DOCUMENTS.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else _shown(place))
        return f"]({relpath(target, Path(own).parent.as_posix())}{match[2] or ''})"

    return LINK.sub(led, markdown)


API = """# API

What `import tempspec` offers, and what a plugin needs, from the docstrings. [From Python](python.md) shows how it is
used. [Plugins](plugins.md) lists the divergences, schedules, verifiers, drafters and lengths.

In docstrings and names, *law* is the distribution of the next token. A letter per axis follows a tensor's name:
`logp_BTV` is a log-distribution of shape `[B, T, V]`.
"""
FOR_PLUGINS = ("Divergence", "TemperatureSchedule", "Verifier", "Drafter", "DraftLength", "DraftHead")


def _api() -> str:
    """The names of the package's face, then the bases of plugins and the checks for them."""
    import tempspec

    face = [f"tempspec.{place}.{name}" for name, place in sorted(tempspec._PLACES.items())]
    bases = [f"tempspec.interfaces.{name}" for name in FOR_PLUGINS]
    parts = [API, "## From `import tempspec`", *(f"::: {name}" for name in face)]
    parts += ["## For plugins", *(f"::: {name}" for name in bases), "## Checks for plugins", "::: tempspec.testing"]
    return "\n\n".join(parts) + "\n"


def _pages(files: Files) -> list[str]:
    return [file.src_uri for file in files.documentation_pages()]


def _links(page: str, text: str) -> list[tuple[str, str]]:
    """What a page links to outside of docs/, from the repository's root, with the link as written."""
    found = ((_place(page, match[1]), match[1]) for match in LINK.finditer(text))
    return [(place, link) for place, link in found if place is not None and not place.startswith("docs/")]


def _place(page: str, link: str) -> str | None:
    """A link's file from the root; None where it leads to a page of docs/ from a page of docs/."""
    source = next(
        (place for place, shown in DOCUMENTS.items() if shown == page and page != "README.md"), f"docs/{page}"
    )
    place = (ROOT / source).parent.joinpath(link).resolve()
    if not place.exists() or not place.is_relative_to(ROOT):
        return None
    inside = place.is_relative_to(ROOT / "docs")
    return None if inside and source.startswith("docs/") else place.relative_to(ROOT).as_posix()


def _shown(place: str) -> str:
    """The page that shows a file which is no document."""
    return f"files/{place}.md" if place.count(".") else f"files/{place}/index.md"


def _code(place: str) -> str:
    """A file as a page of code."""
    language = {".yaml": "yaml", ".py": "python"}.get(Path(place).suffix, "text")
    return f"# {place}\n\n````{language}\n{(ROOT / place).read_text(encoding='utf-8')}\n````\n"


def _listing(place: str) -> str:
    """The names of the files in a folder."""
    names = sorted(file.relative_to(ROOT / place).as_posix() for file in (ROOT / place).rglob("*") if file.is_file())
    return f"# {place}\n\n" + "\n".join(f"- `{name}`" for name in names if "__pycache__" not in name) + "\n"
