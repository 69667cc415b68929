"""`tempspec quickstart`: the whole job at a small size, by the plain command lines that do the same (floor 6).

Without options it makes a small pair of models and does everything with it. With `--target` it does so with a model of
yours. Each step is a command line and the files that it leaves. A step whose command, configuration and inputs are
unchanged is not run again; an interrupted one resumes.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tempspec.cli import errors
from tempspec.cli.quickstart.small_pair import steps
from tempspec.cli.steps import run_steps
from tempspec.errors import UserError

__all__ = ["main", "steps"]


def main(arguments: Sequence[str]) -> int:
    """Run the quickstart.

    Args:
        arguments: `quickstart` and its options.

    Raises:
        UserError: a wrong option, an unwritable folder, or a step that failed.
    """
    options = _parser().parse_args(list(arguments[1:]))
    folder = Path(options.output or _folder(options.target))
    began = time.monotonic()
    if options.target is None:
        print("quickstart: about 5 minutes on two free cores", flush=True)
        planned = list(steps(folder))
    else:
        planned = _own_steps(options.target, options.minutes, folder)
    run_steps(planned, folder / "steps")
    print(f"\nquickstart: {time.monotonic() - began:.0f} s; everything is in {folder}\n")
    _show(folder)
    return 0


def _parser() -> Any:
    parser = errors.parser("tempspec quickstart", "The whole job in minutes, offline, on a laptop CPU.")
    parser.add_argument("--output", type=str, default=None, help="The folder for everything it makes.")
    parser.add_argument(
        "--target", type=str, default=None, help="A model of yours, a folder or a hub name, instead of a small new one."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="With --target: about how long it may take.")
    return parser


def _folder(target: str | None) -> str:
    """Where everything goes unless an option says so: by the target's name, and no target takes another's folder."""
    return "runs/quickstart" if target is None else f"runs/quickstart-{Path(target).name}"


def _own_steps(target: str, minutes: float, folder: Path) -> Any:
    """The steps with a model of the user's, after saying how long they take.

    Raises:
        UserError: no time is given, or there is no such model.
    """
    if not minutes > 0:
        raise UserError(f"--minutes must be above 0, got {minutes:g}")
    print(f"quickstart: reading {target}", flush=True)
    # imported here: it measures the model, for which it needs torch; the small pair's steps begin at once
    from tempspec.cli.quickstart.own_target import steps as own_steps

    return own_steps(target, minutes, folder)


def _show(folder: Path) -> None:
    """Print the table of both decodings and what it says, and name the report."""
    # imported here: the steps above need neither torch nor matplotlib, and must begin at once
    from tempspec.cli.quickstart.results import show

    show(folder / "before" / "predict", folder / "distilled" / "predict", folder)
    print(f"\nThe report: {folder / 'report' / 'report.html'}")
