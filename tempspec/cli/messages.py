"""jsonargparse's reports of a wrong option, told in one line with a remedy (floor 6).

Nothing here decides anything: a report that no rule knows is only joined to one line.
"""

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from tempspec import registry
from tempspec.errors import UserError

__all__ = ["OneLineErrors", "explain"]

_FAMILY = {base: family for family, base in registry.FAMILIES.items()}
_CLASS = re.compile(r"[A-Za-z_][\w.]*\.[A-Za-z_]\w*")
_NEVER = "Expected a <class 'NoneType'>"

_SOURCE = re.compile(r"data\.(train|validation|test|prompts|generation_prompts)(?:\.\w+)?")
_NO_SOURCE = re.compile(
    "Not a valid subclass|Unexpected import path|unknown name|expected dict|got .* not of the expected"
)
_WRITTEN = {"train": "{path: FILE}, or a list of these"} | dict.fromkeys(
    ("validation", "test", "prompts", "generation_prompts"), "sets with names of your own, {NAME: {path: FILE}}"
)
"""How text is named, for what the parser takes for the name of a class."""

_OWN = {"cache_teacher": "generate"}
"""Options that one subcommand has alone."""

_ELSEWHERE = {
    "gpus": "trainer.devices",
    "num_gpus": "trainer.devices",
    "epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "per_device_train_batch_size": "data.batch_size",
    "max_seq_length": "data.max_length",
    "max_tokens": "model.sweep.max_new_tokens",
    "output_dir": "run",
    "output": "run",
    "resume": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
}
"""What other programs, and versions of Lightning before 2, call an option of ours."""


class OneLineErrors(argparse.ArgumentParser):
    """Put before a parser's class: no option is abbreviated, and what is wrong is one `UserError`, without usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report.

        Raises:
            UserError: always.
        """
        raise UserError(explain(message, _options(self))) from ex


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All options of a parser and its subcommand."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _options(child)


def explain(report: str, options: Iterable[str]) -> str:
    """One line for a parser's report.

    Args:
        report: what jsonargparse says, on many lines.
        options: the options that the subcommand knows, such as `--model.target`.

    >>> explain("unrecognized arguments: --model.targt x", ["--model.target", "--run"])
    "unknown option --model.targt: did you mean '--model.target'?"
    >>> explain("the following arguments are required: fit.model.target", [])
    'model.target is missing: set it in the configuration, or give --model.target'
    """
    names = sorted(set(options))
    if found := re.match(r"unrecognized arguments: (.*)", report, re.DOTALL):
        return _unknown_option(found[1].split(), names)
    if found := re.match(r"Subcommand '\S+' does not accept option '(\S+)'", report):
        return _unknown_key(found[1], [name.removeprefix("--") for name in names])
    if found := re.match(r"the following arguments are required: (.*)", report):
        key = found[1].split(",")[0].split(".", 1)[-1]
        return f"{key} is missing: set it in the configuration, or give --{key}"
    if found := re.match(r'Parser key "([\w.+]+)":(.*)', report, re.DOTALL):
        return _wrong_value(found[1], found[2])
    return "; or ".join(_plain(error) for error in _errors(report))


def _joined(text: str) -> str:
    """Many lines as one."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the empty string."""
    close = _closest(name, list(names))
    return f"did you mean {close!r}?" if close else ""


def _closest(name: str, names: list[str]) -> str | None:
    """The name that is meant: what another program calls so, the same last part elsewhere, its words, its letters.

    >>> _closest("--trainer.gpus", ["--trainer.plugins", "--trainer.devices"])
    '--trainer.devices'
    >>> _closest("--model.batch_size", ["--model.beta", "--data.batch_size"])
    '--data.batch_size'
    >>> _closest("stop", ["top_p", "stop_at_eos"])
    'stop_at_eos'
    >>> _closest("--model.targt", ["--data.train", "--model.target"])
    '--model.target'
    """
    dashes = "--" if name.startswith("--") else ""
    section, _, last = name.removeprefix("--").rpartition(".")
    if (known := _ELSEWHERE.get(last)) and dashes + known.rpartition(".")[0] in _sections(names):
        return dashes + known
    parts = {other: other.removeprefix("--").rpartition(".")[2] for other in names}
    alike = [other for other in names if parts[other] == last]
    words = set(last.split("_"))
    alike += [other for other in names if _within(section, other) and words < set(parts[other].split("_"))]
    return next(iter(alike or difflib.get_close_matches(name, names, n=1, cutoff=0.6)), None)


def _within(section: str, name: str) -> bool:
    """Whether an option is of a section."""
    return name.removeprefix("--").rpartition(".")[0] == section


def _sections(names: Iterable[str]) -> set[str]:
    """The names themselves, and all that they are parts of."""
    found = set(names) | {""}
    for name in names:
        while "." in name:
            name = name.rpartition(".")[0]
            found.add(name)
    return found | {"--"}


def _unknown_option(arguments: list[str], names: list[str]) -> str:
    """For an argument that is no option."""
    name = next((argument.partition("=")[0] for argument in arguments if argument.startswith("-")), None)
    if name is None:
        hint = "; a list is one value: '[0, 1]'" if re.fullmatch(r"-?[\d.]+", arguments[0]) else ""
        return f"unexpected argument {arguments[0]!r}: options are written --NAME VALUE{hint}"
    owner = _OWN.get(name.removeprefix("--"))
    hint = f"it is an option of {owner}; leave it out" if owner else _did_you_mean(name, names)
    return f"unknown option {name}: {hint or '--help lists the options'}"


def _unknown_key(key: str, names: list[str]) -> str:
    """For a key of a configuration that is no option, or another's; its first part may be the wrong one."""
    if key in _OWN:
        return f"unknown key {key} in the configuration: it is an option of {_OWN[key]}; leave it out"
    sections = {name.partition(".")[0] for name in names}
    section, _, rest = key.partition(".")
    hint = _did_you_mean(section, sections) if rest and section not in sections else _did_you_mean(key, names)
    return f"unknown key {key} in the configuration: {hint or '--help lists the options'}"


# ---------------------------------------------------------------------------------------------------------------------
# Wrong values
# ---------------------------------------------------------------------------------------------------------------------


def _wrong_value(key: str, details: str) -> str:
    """For a value that its option does not accept."""
    subtypes = (re.search(r"Subtypes: (.*)", details) or ["", details])[1]
    given = _joined(details.rpartition("Given value: ")[2]) if "Given value: " in details else ""
    shown = "" if given.startswith(("NestedArg(", "Namespace(")) else given
    errors = _errors(details)
    specific = [error for error in errors if not re.match(r"Expected a <class '\w+'>(\. Got|$)", error)]
    told = [_one(error, key, subtypes, given) for error in (specific or errors)]
    if (source := _SOURCE.fullmatch(key)) and any(_NO_SOURCE.match(line) for line in told):
        return f"{key}: expected {_WRITTEN[source[1]]}" + (f", got {_joined(shown)}" if shown else "")
    got = "" if any("got" in line or "?" in line for line in told) or not shown else f", got {shown}"
    return f"{key}: {'; or '.join(dict.fromkeys(told))}{got}"


def _errors(details: str) -> list[str]:
    """The bullets under `Errors:` that can help, those of a union within a union too; the whole text without any."""
    if "Errors:" not in details:
        return [_joined(details)]
    part = details.partition("Errors:")[2]
    ends = re.findall(r"\n *Given value", part)
    part = part.split(min(ends, key=len))[0] if ends else part
    outermost = min(re.findall(r"\n *- ", part), key=len, default="\n- ")
    bullets = [error for bullet in part.split(outermost) if bullet.strip() for error in _errors(bullet)]
    return [bullet for bullet in bullets if bullet != _NEVER] or bullets


def _one(error: str, key: str, subtypes: str, given: str) -> str:
    """One bullet in words."""
    rules: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
        (r"Expected a dot import path string: (.*)", lambda found: _unknown_class(found[1], subtypes)),
        (
            r"Problem with given class_path '(\S+)': Importing '(\S+)' is not allowed",
            lambda found: _denied(found[2], subtypes),
        ),
        (r".*Importing '(\S+)' .*import path denylist", lambda found: _denied(found[1], subtypes)),
        (r"Problem with given class_path '(\S+)': .*", lambda found: _unknown_class(found[1], subtypes)),
        (r"Option '(\S+)' is not accepted", lambda found: _unknown_argument(found[1], key, subtypes, given)),
        (r"Expected an instantiatable class.*", lambda found: _no_class(subtypes)),
        (r"the following arguments are required: (.*)", lambda found: f"its option {found[1]} is missing"),
        (r'Parser key "(\S+)": (.*)', lambda found: f"{found[1]}: {_one(found[2], key, subtypes, given)}"),
        (r"(Expected .*?)\. Got value: (.*)", lambda found: f"{_plain(found[1])}, got {found[2]}"),
    )
    for pattern, tell in rules:
        if found := re.match(pattern, error):
            return tell(found)
    return _plain(error)


def _plain(text: str) -> str:
    """Types as a user writes them."""
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    return re.sub(r"^Expected (a )?", "expected ", text)


def _bases(subtypes: str) -> list[type]:
    """The classes that a type names, as far as they are imported."""
    found = (name.rpartition(".") for name in _CLASS.findall(subtypes))
    classes = (getattr(sys.modules.get(module), name, None) for module, _, name in found)
    return [value for value in classes if isinstance(value, type) and value is not type(None)]


def _subclasses(base: type) -> dict[str, type]:
    """All public classes under a base, by name."""
    found: dict[str, type] = {}
    child: type
    for child in base.__subclasses__():
        found |= _subclasses(child)
        if not child.__name__.startswith("_") and not inspect.isabstract(child):
            found[child.__name__] = child
    return found


def _choices(subtypes: str) -> dict[str, type]:
    """What may be named where a value of this type is expected."""
    return {name: value for base in _bases(subtypes) for name, value in _subclasses(base).items()}


def _unknown_class(name: str, subtypes: str) -> str:
    """For a name that is no class of the family; a registered plugin that is broken tells why."""
    if broken := _broken(name, subtypes):
        return broken
    names = sorted(_choices(subtypes))
    if not names or not re.fullmatch(r"[\w.]+", name):
        return f"got {name}, which is not of the expected form"
    if hint := _did_you_mean(name, names):
        return f"unknown name {name!r}, {hint}"
    listed = f"choose from {', '.join(names)}" if len(names) <= 12 else "--help lists the names"
    return f"unknown name {name!r}: {listed}; got {name}"


def _broken(name: str, subtypes: str) -> str:
    """Why a name of a family cannot be used, as the registry says; empty where no family is meant."""
    for base in _bases(subtypes):
        if family := _FAMILY.get(base.__name__):
            try:
                registry.get(family, name)
            except UserError as error:
                return str(error)
    return ""


def _denied(path: str, subtypes: str) -> str:
    """For a class outside the allowlist; one that is registered and broken tells why."""
    name = path.rpartition(".")[2]
    if any(plugin.name == name for plugin in registry.scan()) and (broken := _broken(name, subtypes)):
        return broken
    return (
        f"got {path}, but a configuration may name classes of tempspec, lightning, torch.optim and registered plugins "
        f"only; to allow more set the environment variable TEMPSPEC_ALLOW={path.partition('.')[0]}"
    )


def _unknown_argument(name: str, key: str, subtypes: str, given: str) -> str:
    """For an option that the chosen class does not have."""
    named = re.search(r"class_path'?[=:]\s*'([\w.]+)'", given)
    choices = _choices(subtypes)
    chosen = choices.get(named[1].rpartition(".")[2]) if named else None
    owners = [chosen] if chosen else [base for base in _bases(subtypes) if not inspect.isabstract(base)]
    if not owners:
        return f"unknown option {name!r}: --{key}.help CLASS lists the options of a class"
    parameters = [parameter for owner in owners for parameter in inspect.signature(owner).parameters]
    listed = _did_you_mean(name, parameters) or f"choose from {', '.join(parameters) or 'none'}"
    return f"{owners[0].__name__} has no option {name!r}, {listed}"


def _no_class(subtypes: str) -> str:
    """For a mapping that names no class in the way that is expected."""
    names = sorted(_choices(subtypes))
    return (
        "expected the name of a class, or {class_path: NAME, init_args: {OPTION: VALUE}} with every option under "
        f"init_args (names: {', '.join(names[:12])})"
    )
