"""`tempspec report`: a page with figures and tables of finished runs and studies (floor 6)."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tempspec.cli import errors
from tempspec.reporting.own_text import own_texts
from tempspec.reporting.own_text_table import OwnTextTable
from tempspec.reporting.page import write_report
from tempspec.reporting.runs import collect
from tempspec.reporting.sections.agreement import compared, in_words

__all__ = ["main"]

_AGAINST = (
    "The draft of a study that acceptance on the target's own text is compared with; by default the one whose text and "
    "loss are of the reference temperature, else the first."
)


def main(arguments: Sequence[str]) -> int:
    """Write the report.

    Args:
        arguments: `report` and its options.

    Raises:
        UserError: a wrong option, a folder without a finished run, or a broken file.
    """
    parser = errors.parser("tempspec report", "A page with figures and tables of finished runs or studies.")
    parser.add_argument("runs", type=str, nargs="+", help="Run folders or study folders; the first is the baseline.")
    parser.add_argument("--output", type=str, default=None, help="The folder to write; report/ in the first run.")
    parser.add_argument("--against", type=str, default="", help=_AGAINST)
    options = parser.parse_args(list(arguments[1:]))
    folder = Path(options.runs[0]) / "report" if options.output is None else Path(options.output)
    collection = collect(options.runs, options.against)
    tables = [OwnTextTable(own) for own in own_texts(collection)]
    page = write_report(collection, folder)
    console = Console(highlight=False)
    for table in tables:
        console.print(table, "")
    if said := in_words(compared(collection)):
        print(said)
    print(f"{page}: figures in {folder / 'figures'}, tables in {folder / 'tables'}")
    return 0
