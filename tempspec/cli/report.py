"""`tempspec report`: a page with figures and tables of finished runs and studies (floor 6)."""

from collections.abc import Sequence
from pathlib import Path

from tempspec.cli import errors
from tempspec.reporting.page import write_report
from tempspec.reporting.runs import collect
from tempspec.reporting.sections.agreement import compared, in_words

__all__ = ["main"]


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
    options = parser.parse_args(list(arguments[1:]))
    folder = Path(options.runs[0]) / "report" if options.output is None else Path(options.output)
    collection = collect(options.runs)
    page = write_report(collection, folder)
    if said := in_words(compared(collection)):
        print(said)
    print(f"{page}: figures in {folder / 'figures'}, tables in {folder / 'tables'}")
    return 0
