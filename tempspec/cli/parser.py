"""The argument parser of the Lightning subcommands (floor 6)."""

import argparse
from collections.abc import Iterator
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from tempspec.cli.messages import explain
from tempspec.errors import UserError

__all__ = ["Parser"]


class Parser(LightningArgumentParser):
    """A parser that reports a wrong command line or configuration as one `UserError`, without the long usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report.

        Raises:
            UserError: always.
        """
        raise UserError(explain(message, _options(self))) from ex


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All options of a parser and its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _options(child)
