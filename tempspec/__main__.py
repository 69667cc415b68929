"""The command line's first stage: which subcommand, without importing anything heavy (floor 6).

Importing Lightning takes seconds; `tempspec --help` and a mistyped subcommand must not wait for it.
"""

import difflib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from tempspec import __version__
from tempspec.cli.commands import COMMANDS
from tempspec.errors import UserError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; the process' own by default.

    Returns:
        The exit code: 0, or 2 for bad input, 130 or 143 after an interruption, 141 where nobody reads what is printed.
    """
    try:
        code = _answer(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        # As a program that SIGPIPE ends, without a word: `tempspec plugins | head -1` is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _answer(arguments: list[str]) -> int:
    """The exit code; what a user can fix is told on stderr."""
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        line = _os_error_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into exit code 1
            return 130
        if isinstance(stop.__context__, BrokenPipeError):  # and rich this
            raise stop.__context__ from None
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 2
        return stop.code or 0


def _dispatch(arguments: list[str]) -> int:
    """Answer help and version here; hand everything else to the subcommand's own module.

    Raises:
        UserError: no such subcommand.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"tempspec {__version__}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"expected a subcommand first, got {name!r}: {hint}choose from {', '.join(COMMANDS)}")
    command = importlib.import_module(COMMANDS[name][0])
    return int(command.main(arguments) or 0)


def _help() -> str:
    """The text of `tempspec --help`."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return (
        "usage: tempspec SUBCOMMAND [OPTIONS]\n\n"
        "Train the draft for the temperature you serve at, and know what speculative\ndecoding gains.\n\n"
        f"{lines}\n\n"
        "tempspec SUBCOMMAND --help lists the options.\ntempspec --version prints the version."
    )


def _os_error_line(error: OSError) -> str | None:
    """What a user can do about a failed file operation; None for what is rather a defect."""
    where = f" {error.filename}" if error.filename else ""
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"no permission to read or write{where}; choose another folder, or change its permissions"
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return f"no space left on the device:{where} could not be written; free some, or choose another folder"
        case errno.ENOENT:
            return f"no such file or folder:{where}; check the path, or choose a folder that can be made"
        case errno.ENOTDIR | errno.EEXIST | errno.EISDIR:
            return f"expected a folder where a file is, or the other way round:{where}; choose another name"
        case _:
            return None


if __name__ == "__main__":
    sys.exit(main())
