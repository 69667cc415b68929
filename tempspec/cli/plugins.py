"""`tempspec plugins`: what is registered, with its origin and its doc line (floor 6)."""

import inspect
import warnings
from collections.abc import Sequence
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from tempspec import registry
from tempspec.cli.messages import OneLineErrors

__all__ = ["main"]

Family = Literal["divergences", "schedules", "verifiers", "drafters", "lengths"]


class _Parser(OneLineErrors, ArgumentParser):
    """Reports a wrong option in one line."""


def main(arguments: Sequence[str]) -> int:
    """Print the table of plugins.

    Args:
        arguments: `plugins` and its options.

    Raises:
        UserError: a wrong option, or two plugins of one name.
    """
    parser = _Parser(prog="tempspec plugins", description="List the registered plugins.")
    parser.add_argument("--family", type=Family | None, default=None, help="Only this family.")
    parser.add_argument("--load", type=bool, default=True, help="Import them, to show documentation and errors.")
    options = parser.parse_args(list(arguments[1:]))
    plugins = [plugin for plugin in _found(options.load) if options.family in (None, plugin.family)]
    Console(soft_wrap=True).print(_table(plugins, options.load))
    return 0


def _found(load: bool) -> tuple[registry.Plugin, ...]:
    """The plugins; broken ones are shown in the table, so that their warnings are not needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", registry.RegistryWarning)
        return registry.load() if load else registry.scan()


def _table(plugins: Sequence[registry.Plugin], load: bool) -> Table:
    """One row a plugin."""
    details = ("lossless", "source", "what it is") if load else ("class",)
    table = Table("family", "name", "distribution", *details, box=None, pad_edge=False)
    for plugin in plugins:
        cells = _details(plugin) if load else (plugin.value,)
        table.add_row(plugin.family, plugin.name, plugin.origin, *cells)
    return table


def _details(plugin: registry.Plugin) -> tuple[str, str, str]:
    """Losslessness (verifiers), source and doc line; of a broken plugin its error."""
    if plugin.cls is None:
        return "", "", f"[red]broken: {plugin.error}[/red]"
    lossless = getattr(plugin.cls, "lossless", None)
    words = {True: "yes", False: "no", None: ""}
    doc = (inspect.getdoc(plugin.cls) or "").partition("\n")[0]
    return words[lossless], getattr(plugin.cls, "source", ""), doc
