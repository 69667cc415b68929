"""What options and configurations say before there is a parser (floor 6).

`task` chooses which parser is built, and `run` names the folder. What is given in several places is settled here as
well: configurations come before options, a seed of everything before its parts, and of two options that exclude each
other the one that is named last, on a level of its own, wins.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tempspec.errors import UserError

__all__ = ["Ahead", "look_ahead", "option_pairs"]

_CONFIG = ("-c", "--config")

SEEDS = {
    "distillation": ("data.seed", "model.seed", "model.sweep.seed"),
    "language-model": ("data.seed",),
}
"""The seeds of each task that follow `seed_everything` where they are not given by themselves."""

_ALTERNATIVES = (
    ("model.draft", "model.draft_layers"),
    ("model.shape", "model.pretrained"),
    ("model.teacher", "model.online"),
    ("model.teacher", "model.selection"),
    ("server", "cache_teacher"),
)
"""Pairs of options that exclude each other."""

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


def look_ahead(arguments: list[str]) -> Ahead:
    """Read what the command line and the configurations on it say.

    Args:
        arguments: the subcommand and its options.

    Raises:
        UserError: a configuration is empty, or no mapping.
    """
    command, configs, options = arguments[:1], *_apart(arguments[1:])
    read = [_read(path) for path in configs]
    flags = {option.removeprefix("--"): value for option, value in option_pairs(options) if option.startswith("--")}
    levels = [*(held for _, held in read), _nested(flags)]
    found: dict[str, Any] = {"run": _default_run(configs)}
    for level in [*levels[:-1], flags]:
        found |= {key: level[key] for key in ("task", "run") if level.get(key)}
    task = str(found.get("task") or "distillation")
    seed = next((at["seed_everything"] for at in reversed(levels) if at.get("seed_everything") is not None), None)
    below = _seeds(seed, task)
    settled = [*command, *(word for text in (*below, *(text for text, _ in read)) for word in ("--config", text))]
    settled += [*options, *_given_way(levels)]
    return Ahead(found.get("task"), str(found["run"]), settled, frozenset(flags), tuple(_seeds_that_stay(levels, task)))


def option_pairs(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Options with their values, written `--name value` or `--name=value`."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, equals, value = argument.partition("=")
        yield option, value if equals else following


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
    named = [Path(path).stem for path in configs if not _read_once(Path(path).expanduser())]
    return f"runs/{named[-1]}" if named else "runs/default"


def _read_once(file: Path) -> bool:
    """Whether a file can be read a single time, as what a shell makes of `<(...)`."""
    return file.exists() and not file.is_file() and not file.is_dir()


def _read(path: str) -> tuple[str, dict[str, Any]]:
    """What the parser is to be given, and a configuration's mapping; empty for what the parser will complain about.

    A file that can be read only once, such as `<(...)`, is given as its text.

    Raises:
        UserError: the file is not text, is empty, or no mapping.
    """
    file = Path(path).expanduser()
    try:
        once = _read_once(file)
        text = file.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x}; convert it"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path}: expected sections and options, got brackets nested by the hundred") from error
    except (OSError, ValueError, yaml.YAMLError):
        return path, {}
    if config is None:
        raise UserError(f"{path}: expected sections such as model: and data:, got an empty file")
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected sections such as model: and data:, got a {type(config).__name__}")
    return text if once else path, config


def _nested(flags: Mapping[str, str]) -> dict[str, Any]:
    """Options as a configuration has them; values as YAML reads them.

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
        place[last] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _names(level: Mapping[str, Any], name: str) -> bool:
    """Whether a level gives an option as more than null or false."""
    return _given(level, name) not in (None, False)


def _given(level: Mapping[str, Any], name: str) -> Any:
    """The value of an option on a level; None where it is not given."""
    value: Any = level
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


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
            yield f"--{low}=null"
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
