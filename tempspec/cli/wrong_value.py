"""Why a value is not of its option's type (floor 6).

Whether it is, jsonargparse says. Where it is not is found by going into the type and the value side by side.
"""

import copy
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from os import environ
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser

from tempspec import registry
from tempspec.cli.names import did_you_mean
from tempspec.errors import UserError

__all__ = ["allowed_paths", "refusal"]

_FAMILY = {base: family for family, base in registry.FAMILIES.items()}
_SPECIFICATION = {"class_path", "init_args", "dict_kwargs"}


def allowed_paths() -> list[str]:
    """What a configuration may name: classes of our own packages, of registered plugins and of what a user allows."""
    asked = [name for name in environ.get("TEMPSPEC_ALLOW", "").split(",") if name]
    return ["tempspec", "lightning", "torch.optim", *sorted(registry.allowed_packages()), *asked]


def refusal(kind: Any, value: Any) -> str:
    """What is wrong with a value, in words; empty where nothing is.

    Args:
        kind: a type, as an annotation has it.
        value: as a configuration has it; numbers may be text.

    >>> refusal(list[float] | int, ["1", "x"]), refusal(list[float] | int, "x"), refusal(int | None, "1")
    ('expected float, got x', 'expected list of float or int, got x', '')
    """
    if kind in (Any, inspect.Parameter.empty) or isinstance(kind, str) or _accepts(kind, value):
        return ""
    members = [member for member in _members(kind) if member is not type(None)]
    reasons = [_within(member, value) for member in members if not _classes(member)]
    if classes := [base for member in members for base in _classes(member)]:
        skipped = max(len(_arguments(member)) for member in members)
        reasons.append(_of_class(classes, value, skipped))
    told = "; or ".join(dict.fromkeys(filter(None, reasons)))
    return told or f"expected {' or '.join(map(_name, members))}, got {value}"


def _accepts(kind: Any, value: Any) -> bool:
    """Whether a parser does."""
    if value is None:
        return type(None) in _members(kind)
    probe = ArgumentParser(exit_on_error=False)
    try:
        probe.add_argument("--value", type=kind)
        probe.parse_object({"value": copy.deepcopy(value)})  # which it changes
    except Exception:  # constructors and loaders of any class raise whatever they like
        return False
    return True


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; a type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _within(kind: Any, value: Any) -> str:
    """What is wrong with a part of a value; empty where that has not the form for it."""
    origin, parts = get_origin(kind), get_args(kind)
    if Callable in (kind, origin) and isinstance(value, str) and not _is_allowed(value):
        return _not_allowed(value)
    if not inspect.isclass(origin) or not parts:
        return ""
    if issubclass(origin, Mapping):
        inner, held = parts[1], list(value.values()) if isinstance(value, dict) else []
    else:
        inner, held = parts[0], value if isinstance(value, list) and issubclass(origin, Iterable) else []
    return next(filter(None, (refusal(inner, each) for each in held)), "")


def _name(kind: Any) -> str:
    """A type as a user writes it."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if inspect.isclass(origin) and issubclass(origin, Iterable) and parts:
        inner = " or ".join(map(_name, _members(parts[-1])))
        return f"{{NAME: {inner}}}" if issubclass(origin, Mapping) else f"list of {inner}"
    return str(getattr(kind, "__name__", kind))


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def _arguments(kind: Any) -> list[Any]:
    """What a function of this type is called with: the options of the class that it makes are those after them."""
    return args[0] if get_origin(kind) is Callable and isinstance((args := get_args(kind))[0], list) else []


def _classes(kind: Any) -> list[type]:
    """The classes whose objects a type means, or those that a function of it makes."""
    if get_origin(kind) is Callable and get_args(kind):
        return [base for member in _members(get_args(kind)[-1]) for base in _classes(member)]
    plain = (
        inspect.isclass(kind) and get_origin(kind) is None and kind.__module__ not in ("builtins", "collections.abc")
    )
    return [kind] if plain else []


def _subclasses(base: type) -> dict[str, type]:
    """All public classes from a base on, by name."""
    found = {} if base.__name__.startswith("_") or inspect.isabstract(base) else {base.__name__: base}
    child: type
    for child in base.__subclasses__():
        found |= _subclasses(child)
    return found


def _of_class(bases: list[type], value: Any, skipped: int) -> str:
    """What is wrong with the name of a class, or with its options."""
    allowed = tuple(f"{path}." for path in allowed_paths())  # not what the process defines elsewhere
    found = {name: each for base in bases for name, each in _subclasses(base).items()}
    choices = {name: each for name, each in found.items() if f"{each.__module__}.".startswith(allowed)}
    if isinstance(value, str) and all(part.isidentifier() for part in value.split(".")):
        value = {"class_path": value}
    if not isinstance(value, dict):
        return ""
    named = value.get("class_path")
    if named is None and (own := [base for base in bases if base.__name__ in found]):
        options = value.get("init_args", value)
        told = _of_options(own[0], options, skipped)
        if not (told and any(_has(each, options) for each in choices.values())):  # else it is another's, without a name
            return told
    if not isinstance(named, str) or value.keys() - _SPECIFICATION:
        return (
            "expected the name of a class, or {class_path: NAME, init_args: {OPTION: VALUE}} with every option under "
            f"init_args (names: {', '.join(sorted(choices)[:12])}), got {value}"
        )
    chosen = choices.get(named.rpartition(".")[2])
    if chosen is None or not _is_allowed(named):
        return _no_class(named, bases, sorted(choices))
    return _of_options(chosen, value.get("init_args") or {}, skipped)


def _has(chosen: type, options: Any) -> bool:
    """Whether a class has all of some options, one at least."""
    return isinstance(options, dict) and bool(options) and options.keys() <= inspect.signature(chosen).parameters.keys()


def _is_allowed(path: str) -> bool:
    return "." not in path or any(f"{path}.".startswith(f"{allowed}.") for allowed in allowed_paths())


def _no_class(name: str, bases: list[type], names: list[str]) -> str:
    """For a name of no class that is meant; a registered plugin that is broken tells why."""
    for family in [_FAMILY[base.__name__] for base in bases if base.__name__ in _FAMILY]:
        try:
            registry.get(family, name.rpartition(".")[2] if _is_registered(name) else name)
        except UserError as error:
            if "." not in name or _is_registered(name):
                return str(error)
    if not _is_allowed(name):
        return _not_allowed(name)
    listed = f"choose from {', '.join(names)}" if len(names) <= 20 else "--help lists the names"
    return f"unknown name {name!r}, {did_you_mean(name.rpartition('.')[2], names) or listed}"


def _not_allowed(path: str) -> str:
    return (
        f"got {path}, but a configuration may name classes of tempspec, lightning, torch.optim and registered plugins "
        f"only; to allow more set the environment variable TEMPSPEC_ALLOW={path.partition('.')[0]}"
    )


def _is_registered(path: str) -> bool:
    """Whether a path ends with the name of a plugin that is registered."""
    return any(plugin.name == path.rpartition(".")[2] for plugin in registry.scan())


def _of_options(chosen: type, options: Any, skipped: int) -> str:
    """What is wrong with the options of a class."""
    parameters = dict(list(inspect.signature(chosen).parameters.items())[skipped:])
    named = [name for name, each in parameters.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if not isinstance(options, dict):
        return f"expected options of {chosen.__name__} as {{OPTION: VALUE}}, got {options}"
    for name, value in options.items():
        if name not in named:
            if named != list(parameters):  # it takes others, too
                continue
            listed = did_you_mean(str(name), named) or f"choose from {', '.join(named) or 'none'}"
            return f"{chosen.__name__} has no option {name!r}, {listed}"
        if told := refusal(parameters[name].annotation, value):
            return f"{name}: {told}"
    missing = [name for name in named if parameters[name].default is inspect.Parameter.empty and name not in options]
    return f"its option {missing[0]} is missing" if missing else ""
