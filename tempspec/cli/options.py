"""What options and configurations say, before there is a parser and for its errors (floor 6).

`task` chooses which parser is built, and `run` names the folder. What is given in several places is settled here as
well: configurations come before options, a seed of everything before its parts, and of two options that exclude each
other the one that is named last, on a level of its own, wins.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tempspec.cli.renamed import new_name, rename_keys
from tempspec.errors import UserError

__all__ = ["CACHES", "Ahead", "caches", "given", "look_ahead"]

_CONFIG = ("-c", "--config")

SEEDS = {
    "distillation": ("data.seed", "model.seed", "model.sweep.seed"),
    "language-model": ("data.seed",),
}
"""The seeds of each task that follow `seed_everything` where they are not given by themselves."""

_ALTERNATIVES = (
    ("model.draft", "model.draft_layers"),
    ("model.head", "model.draft_layers"),
    ("model.shape", "model.pretrained"),
    ("model.teacher", "model.online"),
    ("model.teacher", "model.selection"),
    ("server", "cache_features"),
    ("cache_features", "cache_teacher"),
)
"""Pairs of options that exclude each other."""

_NOTHING = {"cache_teacher": "false", "cache_features": "false"}
"""What takes an option back, where that is not null."""

CACHES = {"--cache-teacher": "--cache_teacher=true", "--cache-features": "--cache_features=true"}
"""Flags of generate, and the options that they are."""

_GOES_WITH = {"model.draft_layers": "model.draft_width"}
"""What says nothing without another option."""


@dataclass(frozen=True)
class Ahead:
    """What is known before there is a parser.

    Attributes:
        task: what is run, if that is said.
        run: the run folder.
        arguments: the subcommand and its options, settled.
        options: the names of those that the command line itself gives, without dashes.
        notes: what a user should be told about them, a line each.
    """

    task: Any
    run: str
    arguments: list[str]
    options: frozenset[str]
    notes: tuple[str, ...] = ()

    def names(self, *options: str) -> bool:
        """Whether the command line itself gives one of these options, or a part of one."""
        return any(given == name or given.startswith(f"{name}.") for given in self.options for name in options)


def caches(options: Any) -> bool:
    """Whether generate is to write a cache of the target instead of text; options of any command."""
    return bool(options.get("cache_teacher") or options.get("cache_features"))


def look_ahead(arguments: list[str]) -> Ahead:
    """Read what the command line and the configurations on it say.

    Args:
        arguments: the subcommand and its options.

    Raises:
        UserError: a configuration is empty, or no mapping, or gives an option under two names.
    """
    command, configs, options = arguments[:1], *_apart(arguments[1:])
    options, renamed = _with_new_names(options)
    read = [_read(path) for path in configs]
    flags = dict(_flags(options))
    levels = [*(config.held for config in read), _nested(flags)]
    found: dict[str, Any] = {"run": _default_run(configs)}
    for level in [*levels[:-1], flags]:
        found |= {key: level[key] for key in ("task", "run") if level.get(key)}
    task = str(found.get("task") or "distillation")
    seed = next((at["seed_everything"] for at in reversed(levels) if at.get("seed_everything") is not None), None)
    below = _seeds(seed, task)
    settled = [*command, *(word for text in (*below, *(at.text for at in read)) for word in ("--config", text))]
    settled += [*options, *_given_way(levels)]
    notes = (*(note for config in read for note in config.notes), *renamed, *_seeds_that_stay(levels, task))
    return Ahead(found.get("task"), str(found["run"]), settled, frozenset(flags), notes)


def given(arguments: list[str], name: str) -> Any:
    """What the configurations and the options, settled as `look_ahead` does, say of one option; None for nothing.

    A class that is named and options of it that are given by themselves are put together, as the parser does.

    >>> given(["--model.divergence", "SkewKL", "--model.divergence.alpha", "x"], "model.divergence")
    {'class_path': 'SkewKL', 'init_args': {'alpha': 'x'}}
    """
    configs, options = _apart(arguments)
    found: Any = {}
    for level in [
        *(_read(path).held for path in configs),
        *(_nested({name: at}, _as_typed) for name, at in _flags(options)),
    ]:
        found = _over(found, level)
    return _given(found, name)


def _flags(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Options, without dashes, with their values, written `--name value` or `--name=value`."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, value = argument.partition("=")
        if option.startswith("--"):
            yield option.removeprefix("--"), value if equals else following


def _with_new_names(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments with today's names of options, and a line for each former one."""
    found, notes = [], []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        today = f"--{new_name(option.removeprefix('--'))}" if option.startswith("--") else option
        if today != option:
            notes.append(f"{option} is called {today} now: rename it")
        found.append(f"{today}{equals}{value}")
    return found, notes


# ---------------------------------------------------------------------------------------------------------------------
# Configurations
# ---------------------------------------------------------------------------------------------------------------------


def _apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The configurations, and all other arguments: an option in front of a configuration is not to be lost in it."""
    configs: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option not in _CONFIG:
            others.append(argument)
        elif (path := value if equals else next(rest, None)) is None:
            others.append(argument)  # the parser says that its value is missing
        else:
            configs.append(path)
    return configs, others


def _default_run(configs: list[str]) -> str:
    """The folder of a run that names none: the last configuration's name."""
    named = [Path(path).stem for path in configs if not _is_text(path) and not _read_once(Path(path).expanduser())]
    return f"runs/{named[-1]}" if named else "runs/default"


def _is_text(path: str) -> bool:
    """Whether a configuration is given as its text."""
    return "\n" in path or path.startswith("{")


def _read_once(file: Path) -> bool:
    """Whether a file can be read a single time, as what a shell makes of `<(...)`."""
    return file.exists() and not file.is_file() and not file.is_dir()


@dataclass(frozen=True)
class _Config:
    """A configuration.

    Attributes:
        text: what the parser is to be given: the path, or the text where the file can be read only once or has former
            keys.
        held: what it says; empty for what the parser will complain about.
        notes: a line for each former key.
    """

    text: str
    held: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _read(path: str) -> _Config:
    """Read a configuration, from a file or, as the parser too accepts it, from its text.

    Raises:
        UserError: the file is not text, is empty, or no mapping.
    """
    file = None if _is_text(path) else Path(path).expanduser()
    try:
        as_text = file is None or _read_once(file)
        text = path if file is None else file.read_text(encoding="utf-8")
        held = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x}; convert it"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path}: expected sections and options, got brackets nested by the hundred") from error
    except (OSError, ValueError, yaml.YAMLError):
        return _Config(path)
    if not isinstance(held, dict):
        got = "an empty file" if held is None else f"a {type(held).__name__}"
        raise UserError(f"{path}: expected sections such as model: and data:, got {got}")
    if notes := rename_keys(held):
        return _Config(yaml.safe_dump(held), held, tuple(f"{path}: {note}" for note in notes))
    return _Config(text if as_text else path, held)


def _nested(flags: Mapping[str, str], read: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Options as a configuration has them; values as YAML reads them, unless something else does.

    >>> _nested({"run": "r", "model.draft": "d", "model.sweep.seed": "4"})
    {'run': 'r', 'model': {'draft': 'd', 'sweep': {'seed': 4}}}
    """
    found: dict[str, Any] = {}
    for name, text in flags.items():
        *sections, last = name.split(".")
        place = found
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[last] = (read or _value)(text)
    return found


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _over(below: Any, above: Any) -> Any:
    """A value, and what a higher level says of it or of its parts."""
    if not isinstance(above, dict) or (below is None and not any(name.endswith("+") for name in above)):
        return above
    if isinstance(below, list) and below:  # the parts are of the element that was added last
        return [*below[:-1], _over(below[-1], above)]
    if isinstance(below, str):
        below = {"class_path": below}
    if not isinstance(below, dict) or above.get("class_path") not in (None, below.get("class_path")):
        below = {}
    if "class_path" in below and above.keys().isdisjoint({"class_path", "init_args"}):
        above = {"init_args": above}
    found = dict(below)
    for name, value in above.items():
        whole, added, _ = name.partition("+")
        held = found.get(whole)
        found[whole] = [*(held if isinstance(held, list) else []), value] if added else _over(held, value)
    return found


def _names(level: Mapping[str, Any], name: str) -> bool:
    """Whether a level gives an option as more than null or false."""
    return _given(level, name) not in (None, False)


def _given(level: Mapping[str, Any], name: str) -> Any:
    """The value of an option on a level; None where it is not given."""
    value: Any = level
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _as_typed(text: str) -> Any:
    """A list or sections as YAML reads them, anything else as it was typed: what is a number depends on the type."""
    value = _value(text)
    return value if isinstance(value, dict | list) or value is None else text


# ---------------------------------------------------------------------------------------------------------------------
# What is given in several places
# ---------------------------------------------------------------------------------------------------------------------


def _given_way(levels: list[dict[str, Any]]) -> Iterator[str]:
    """Options that take back what a lower level names where a higher one names what excludes it.

    >>> list(_given_way([{"model": {"draft_layers": 2}}, {"model": {"draft": "d"}}]))
    ['--model.draft_layers=null']
    """
    for pair in _ALTERNATIVES:
        highest = {name: max((n for n, at in enumerate(levels) if _names(at, name)), default=-1) for name in pair}
        low, high = sorted(pair, key=highest.__getitem__)
        if -1 < highest[low] < highest[high]:
            yield f"--{low}={_NOTHING.get(low, 'null')}"
            beside = _GOES_WITH.get(low)
            if beside and any(_names(level, beside) for level in levels):
                yield f"--{beside}=null"


def _seeds(seed: Any, task: str) -> list[str]:
    """A configuration below all others, in which every seed is that of everything; none where that is not given."""
    if type(seed) is not int or task not in SEEDS:
        return []
    return [json.dumps(_nested(dict.fromkeys(SEEDS[task], str(seed))))]


def _seeds_that_stay(levels: list[dict[str, Any]], task: str) -> Iterator[str]:
    """A line where the command line's `seed_everything` leaves seeds alone, because a configuration names them."""
    *files, flags = levels
    if flags.get("seed_everything") is None:
        return
    named = {
        name: value for level in files for name in SEEDS.get(task, ()) if (value := _given(level, name)) is not None
    }
    kept = [f"{name} {value}" for name, value in named.items() if _given(flags, name) is None]
    if any(value != flags["seed_everything"] for value in named.values()) and kept:
        yield (
            f"seed_everything {flags['seed_everything']} leaves alone what the configuration names: {', '.join(kept)}"
        )
