"""From a family and a name to a class: plugins from entry points, the built-ins too (floor 0: standard library only).

`scan` reads what installed distributions declare and imports nothing; `load` imports it. A plugin that cannot be
imported costs one warning, and an error only when it is selected.
"""

import difflib
import functools
import importlib.metadata as metadata
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tempspec.errors import UserError

__all__ = ["FAMILIES", "Plugin", "RegistryWarning", "allowed_packages", "get", "load", "scan"]

FAMILIES: dict[str, str] = {
    "divergences": "Divergence",
    "schedules": "TemperatureSchedule",
    "verifiers": "Verifier",
    "drafters": "Drafter",
    "lengths": "DraftLength",
    "heads": "DraftHead",
}
"""Family to its abstract base in `tempspec.interfaces`; the entry-point group is `tempspec.FAMILY`."""


class RegistryWarning(UserWarning):
    """A registered plugin cannot be used."""


@dataclass(frozen=True)
class Plugin:
    """One registered plugin.

    Attributes:
        family: a key of `FAMILIES`.
        name: the entry point's name, which is the class's.
        value: where the class is, `package.module:Class`.
        distribution: the name of the distribution that registered it.
        version: that distribution's version.
        cls: the class; None before `load` and for a broken plugin.
        error: why the plugin cannot be used; None when it can, and before `load`.
    """

    family: str
    name: str
    value: str
    distribution: str
    version: str
    cls: type | None = None
    error: str | None = None

    @property
    def origin(self) -> str:
        """The distribution and its version, as messages name it."""
        return f"{self.distribution} {self.version}"


def scan() -> tuple[Plugin, ...]:
    """Everything that is registered, by family and name, without importing it.

    Raises:
        UserError: two distributions register one name in one family.

    >>> [plugin.name for plugin in scan() if plugin.name.endswith("ReverseKL") and plugin.distribution == "tempspec"]
    ['ReverseKL', 'SkewReverseKL']
    """
    found: dict[tuple[str, str], Plugin] = {}
    for plugin in _declared():
        first = found.setdefault((plugin.family, plugin.name), plugin)
        if first != plugin:
            raise UserError(
                f"expected one plugin named {plugin.name!r} in {plugin.family}, got {first.value!r} of {first.origin} "
                f"and {plugin.value!r} of {plugin.origin}: uninstall one of the two"
            )
    order = list(FAMILIES)
    return tuple(sorted(found.values(), key=lambda plugin: (order.index(plugin.family), plugin.name)))


@functools.cache
def load() -> tuple[Plugin, ...]:
    """Everything that is registered, imported and checked; the first call does the work.

    Warns:
        RegistryWarning: once for each plugin that cannot be used, on the first process of a machine only.

    Raises:
        UserError: two distributions register one name in one family.
    """
    plugins = tuple(map(_imported, scan()))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for plugin in plugins:
            if plugin.error is not None:
                warnings.warn(_reason(plugin), RegistryWarning, stacklevel=2)
    return plugins


def get(family: str, name: str) -> type:
    """The class of a registered plugin.

    Args:
        family: a key of `FAMILIES`.
        name: the class's name.

    Raises:
        UserError: no such family or name, or the plugin cannot be used.

    >>> get("divergences", "ForwardKL").__name__
    'ForwardKL'
    >>> get("divergences", "FowardKL")
    Traceback (most recent call last):
    ...
    tempspec.errors.UserError: expected the name of one of divergences, got 'FowardKL': did you mean 'ForwardKL'? ...
    """
    if family not in FAMILIES:
        raise UserError(_unknown("a plugin family", family, list(FAMILIES)))
    members = {plugin.name: plugin for plugin in load() if plugin.family == family}
    if name not in members:
        raise UserError(_unknown(f"the name of one of {family}", name, list(members)))
    plugin = members[name]
    if plugin.cls is None:
        raise UserError(_reason(plugin))
    return plugin.cls


def allowed_packages() -> set[str]:
    """The top-level packages that hold usable plugins: what a configuration may import besides our dependencies."""
    usable = [(plugin.value, plugin.cls) for plugin in load() if plugin.cls is not None]
    return {path.partition(".")[0] for value, cls in usable for path in (value.partition(":")[0], cls.__module__)}


def _declared() -> Iterator[Plugin]:
    """The entry points of all families; each distribution's metadata, which is slow to parse, is read once."""
    known: dict[int, tuple[str, str]] = {}
    entries = metadata.entry_points()
    for family in FAMILIES:
        for entry in entries.select(group=f"tempspec.{family}"):
            dist = entry.dist
            assert dist is not None  # entry_points() always sets it
            if id(dist) not in known:
                known[id(dist)] = (dist.name, dist.version)
            yield Plugin(family, entry.name, entry.value, *known[id(dist)])


def _imported(plugin: Plugin) -> Plugin:
    """The plugin with its class, or with the reason why it has none."""
    try:
        value = metadata.EntryPoint(plugin.name, plugin.value, f"tempspec.{plugin.family}").load()
    except (Exception, SystemExit) as error:
        return replace(plugin, error=f"{type(error).__name__}: {error}")
    fault = _fault(plugin, value)
    return replace(plugin, cls=value) if fault is None else replace(plugin, error=fault)


def _fault(plugin: Plugin, value: object) -> str | None:
    """What keeps an imported object from being a plugin of its family, or None."""
    if not isinstance(value, type):
        return f"expected a class, got {type(value).__name__}"
    base = FAMILIES[plugin.family]
    # The ground floor imports nothing; a plugin that derives from the base has imported it already.
    if not issubclass(value, getattr(sys.modules.get("tempspec.interfaces"), base, ())):
        return f"expected a subclass of tempspec.interfaces.{base}, got {value.__qualname__}"
    if inspect.isabstract(value):
        return (
            f"expected a concrete class, got one without {', '.join(sorted(getattr(value, '__abstractmethods__', ())))}"
        )
    if value.__name__ != plugin.name:
        return f"expected the entry point to be named like its class, {value.__name__}"
    if not _is_public(value):
        return f"expected a class that can be imported by a public name, got {value.__module__}.{value.__qualname__}"
    return None


def _is_public(cls: type) -> bool:
    """Whether the class is an attribute of its module, or of the public package around its private module."""
    parts = cls.__module__.split(".")
    private = next((index for index, part in enumerate(parts) if part.startswith("_")), len(parts))
    module = sys.modules.get(".".join(parts[:private]))
    return not cls.__name__.startswith("_") and getattr(module, cls.__name__, None) is cls


def _reason(plugin: Plugin) -> str:
    """Why a plugin cannot be used, for its warning and its error."""
    return (
        f"plugin {plugin.name!r} in {plugin.family} ({plugin.value} of {plugin.origin}) cannot be used: "
        f"{plugin.error}; repair or uninstall {plugin.distribution}"
    )


def _unknown(expected: str, got: str, names: list[str]) -> str:
    """The message for a name that nobody registered."""
    close = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"expected {expected}, got {got!r}: {hint}choose from {', '.join(names) or 'none'}"
