"""`tempspec plugins`: the installed plugins, with package, summary and paper (floor 6)."""

import inspect
import warnings
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from tempspec import registry
from tempspec.cli import errors

__all__ = ["main"]

Family = Literal["divergences", "schedules", "verifiers", "drafters", "lengths", "heads"]


def main(arguments: Sequence[str]) -> int:
    """Print the plugins, family by family.

    Args:
        arguments: `plugins` and its options.

    Raises:
        UserError: a wrong option, or two plugins of one name.
    """
    parser = errors.parser("tempspec plugins", "List the registered plugins.")
    parser.add_argument("--family", type=Family | None, default=None, help="Only this family.")
    parser.add_argument("--load", type=bool, default=True, help="Import them, to show documentation and errors.")
    options = parser.parse_args(list(arguments[1:]))
    plugins = [plugin for plugin in _found(options.load) if options.family in (None, plugin.family)]
    _show(plugins, options.load, Console(highlight=False))
    return 0


def _found(load: bool) -> tuple[registry.Plugin, ...]:
    """The plugins; broken ones are shown in the table, so that their warnings are not needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", registry.RegistryWarning)
        return registry.load() if load else registry.scan()


def _show(plugins: Sequence[registry.Plugin], load: bool, console: Console) -> None:
    """A heading a family; names are never cut, whatever the width."""
    for family, members in groupby(plugins, key=lambda plugin: plugin.family):
        console.print(f"[bold]{family}[/bold]")
        for plugin in members:
            facts = [escape(fact) for fact in (_lossless(plugin), plugin.origin) if fact]
            console.print(f"  [cyan]{plugin.name}[/cyan]  [dim]{'  '.join(facts)}[/dim]", soft_wrap=True)
            for line in _details(plugin) if load else [plugin.value]:
                console.print(Padding(line, (0, 0, 0, 6)))
        console.print()


def _lossless(plugin: registry.Plugin) -> str:
    """Whether a verifier keeps the target's distribution; empty for the other families."""
    return {True: "lossless", False: "lossy"}.get(getattr(plugin.cls, "lossless", None), "")  # type: ignore[arg-type]


def _details(plugin: registry.Plugin) -> list[str]:
    """The doc line and the source; of a broken plugin its error."""
    if plugin.cls is None:
        return [f"[red]broken: {escape(str(plugin.error))}[/red]"]
    doc = (inspect.getdoc(plugin.cls) or "").partition("\n")[0]
    return [escape(line) for line in (doc, getattr(plugin.cls, "source", "")) if line]
