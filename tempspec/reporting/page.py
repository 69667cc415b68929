"""The report: one HTML page without network or script, and its figures and tables as files (floor 5)."""

from collections.abc import Set
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tempspec.files import write_atomically
from tempspec.reporting.answers import answers
from tempspec.reporting.figures import write_figure
from tempspec.reporting.page_tables import to_csv, to_latex
from tempspec.reporting.runs import Collection
from tempspec.reporting.sections.agreement import agreement
from tempspec.reporting.sections.common import Section
from tempspec.reporting.sections.engine import engine
from tempspec.reporting.sections.own_text import own_text
from tempspec.reporting.sections.prediction import categories, decoding, differences, rounds, speed
from tempspec.reporting.sections.provenance import provenance
from tempspec.reporting.sections.validation import drafting, prefixes, temperatures
from tempspec.reporting.svg import inline_svg

__all__ = ["sections", "write_report"]


def write_report(collection: Collection, folder: Path) -> Path:
    """Write `report.html`, `figures/` (PNG and SVG) and `tables/` (CSV and LaTeX); returns the page.

    Args:
        collection: what was read.
        folder: where to.
    """
    made = sections(collection)
    shown = []
    files = set()
    for section in made:
        figures = []
        for chart in section.charts:
            _, file = write_figure(chart.figure, folder / "figures" / chart.name)
            files |= {f"figures/{chart.name}.png", f"figures/{chart.name}.svg"}
            inside = inline_svg(chart, file.read_text(encoding="utf-8"))
            figures.append((chart, Markup(inside)))  # made and escaped by an XML writer
        for sheet in section.sheets:
            write_atomically(folder / "tables" / f"{sheet.name}.csv", to_csv(sheet))
            write_atomically(folder / "tables" / f"{sheet.name}.tex", to_latex(sheet))
            files |= {f"tables/{sheet.name}.csv", f"tables/{sheet.name}.tex"}
        shown.append(vars(section) | {"figures": figures})
    environment = Environment(loader=PackageLoader("tempspec.reporting"), autoescape=True, undefined=StrictUndefined)
    names = ", ".join(draft.name for draft in collection.drafts)
    text = environment.get_template("page.html").render(
        title=collection.title, drafts=names, notes=collection.notes, answers=answers(collection), sections=shown
    )
    write_atomically(folder / "report.html", text)
    _remove_others(folder, files)
    return folder / "report.html"


def sections(collection: Collection) -> list[Section]:
    """Every section that these runs have numbers for, in the order of the page; provenance is the last."""
    makers = (decoding, own_text, agreement, speed, engine, rounds, temperatures, drafting, prefixes, differences)
    made = [make(collection) for make in (*makers, categories)]
    return [section for section in made if section.charts or section.sheets] + [provenance(collection)]


def _remove_others(folder: Path, files: Set[str]) -> None:
    """Take away what an earlier report wrote and this one did not, by the list that each leaves; nothing else."""
    index = folder / "files.txt"
    earlier = set(index.read_text(encoding="utf-8").splitlines()) if index.exists() else set[str]()
    for name in earlier - files:
        if name in {f"{kind}/{Path(name).name}" for kind in ("figures", "tables")}:  # whatever else the list says
            (folder / name).unlink(missing_ok=True)
    write_atomically(index, "".join(f"{name}\n" for name in sorted(files)))
