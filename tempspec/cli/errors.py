"""What a parser refuses, told in one line with a remedy (floor 6).

Four phrases of jsonargparse's are read (`PHRASES`), which a test holds to the version that is installed: they name the
option. What is wrong with its value is found by its type, in `tempspec.cli.wrong_value`. A report that no phrase fits
is joined to one line.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from tempspec.cli.names import did_you_mean
from tempspec.cli.options import given
from tempspec.cli.wrong_value import refusal
from tempspec.errors import UserError

__all__ = ["PHRASES", "OneLineErrors", "one_line", "parser"]

PHRASES = {
    "argument": r"unrecognized arguments: (.*)",
    "key": r"(?:Subcommand '\S+' does not accept option|Option) '(\S+)'",
    "missing": r"the following arguments are required: (?:\w+\.)?([^,]*)",
    "value": r'Parser key "([\w.]+)\+?"[^:]*:(.*)',
}
"""How jsonargparse begins to say that an argument or a key is unknown, an option is missing, or a value is wrong."""

_OF_GENERATE = ("cache_teacher", "cache_features")
"""Options that generate has alone."""

_SOURCES = {"train": "{path: FILE}, or a list of these"} | dict.fromkeys(
    ("validation", "test", "prompts", "generation_prompts"), "sets with names of your own, {NAME: {path: FILE}}"
)
"""How each option of the data names text, for what the parser takes for the name of a class."""


class OneLineErrors(argparse.ArgumentParser):
    """Put before a parser's class: no option is abbreviated, and what is wrong is one `UserError`, without usage."""

    hint = ""
    """What is said beside an unknown key."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report.

        Raises:
            UserError: always.
        """
        rules: dict[str, Callable[..., str]] = {
            "argument": self._unknown_argument,
            "key": self._unknown_key,
            "missing": lambda key: f"{key} is missing: set it in the configuration, or give --{key}",
            "value": self._wrong_value,
        }
        for kind, tell in rules.items():
            if found := re.match(PHRASES[kind], message, re.DOTALL):
                raise UserError(tell(*found.groups())) from ex
        raise UserError(one_line(message)) from ex

    def _names(self) -> list[str]:
        """All options, such as `--model.target`."""
        return sorted({name for action in _actions(self) for name in action.option_strings})

    def _unknown_argument(self, arguments: str) -> str:
        """For arguments that are no options."""
        first = arguments.split()[0]
        name = next((word.partition("=")[0] for word in arguments.split() if word.startswith("-")), None)
        if name is None:
            list_hint = "; a list is one value: '[0, 1]'" if re.fullmatch(r"-?[\d.]+", first) else ""
            return f"unexpected argument {first!r}: options are written --NAME VALUE{list_hint}"
        return f"unknown option {name}: {_of_generate(name[2:]) or did_you_mean(name, self._names()) or _HELP}"

    def _unknown_key(self, key: str) -> str:
        """For a key of a configuration that is no option, or another's; its first part may be the wrong one."""
        names = [name.removeprefix("--") for name in self._names()]
        sections = {name.partition(".")[0] for name in names}
        section, _, rest = key.partition(".")
        known = did_you_mean(section, sections) if rest and section not in sections else did_you_mean(key, names)
        remedies = [_of_generate(key) or known, self.hint]
        return f"unknown key {key} in the configuration: {'; '.join(filter(None, remedies)) or _HELP}"

    def _wrong_value(self, key: str, details: str) -> str:
        """For a value that its option does not accept."""
        action = next(
            (at for at in _actions(self) if key in (at.dest, f"{getattr(self, 'subcommand', '')}.{at.dest}")), None
        )
        value = given(getattr(self, "args", []), key)
        told = refusal(getattr(action, "_typehint", Any), value) or one_line(details)
        section, _, name = key.partition(".")
        if section == "data" and name in _SOURCES and re.match("expected|unknown name|got", told):
            told = f"expected {_SOURCES[name]}, got {value}"
        return f"{key}: {told}"


_HELP = "--help lists the options"


def parser(prog: str, description: str, hint: str = "") -> ArgumentParser:
    """The parser of a subcommand that is none of Lightning's.

    Args:
        prog: how it is called.
        description: what it does, for `--help`.
        hint: what is said beside an unknown key of a configuration.
    """
    made = Plain(prog=prog, description=description)
    made.hint = hint
    return made


class Plain(OneLineErrors, ArgumentParser):
    """jsonargparse's, with errors in one line."""


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """What a parser and its subcommand read."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)


def _of_generate(option: str) -> str:
    return "it is an option of generate; leave it out" if option in _OF_GENERATE else ""


def one_line(text: str) -> str:
    r"""Many lines as one, with types as a user writes them.

    >>> one_line("Expected a <class 'int'>.\n  Got value: x")
    'expected int. Got value: x'
    """
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", " ".join(text.split()))
    return re.sub(r"^Expected (a )?", "expected ", text)
