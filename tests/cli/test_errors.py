"""What is read of jsonargparse's reports, and how a wrong value is told."""

import re
from dataclasses import dataclass
from importlib import metadata

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from tempspec.cli import errors, wrong_value
from tempspec.errors import UserError
from tempspec.interfaces import Verifier

WRITTEN_FOR = "4.53"


@dataclass
class Inner:
    size: int
    name: str = ""


def parser(kind):
    made = kind()
    made.add_argument("--config", action="config")
    made.add_argument("--number", type=int, required=True)
    made.add_argument("--inner", type=Inner | list[Inner] | None)
    return made


def commands():
    made = ArgumentParser(exit_on_error=False)
    below = ArgumentParser(exit_on_error=False)
    below.add_argument("--number", type=int)
    made.add_subcommands().add_subcommand("fit", below)
    return made


REPORTS = {
    "an unknown argument": ("argument", parser, ["--number", "1", "--other", "x"], "--other x"),
    "an option that is missing": ("missing", parser, [], "number"),
    "an unknown key": ("key", parser, ["--number", "1", "--config", "{other: 1}"], "other"),
    "a wrong value": ("value", parser, ["--number", "x"], "number"),
    "a wrong value of several types": ("value", parser, ["--inner", "3"], "inner"),
}


@pytest.mark.parametrize("case", REPORTS)
def test_jsonargparse_says_it_in_the_words_that_are_read(case):
    phrase, make, line, named = REPORTS[case]
    with pytest.raises(ArgumentError) as caught:
        make(lambda: ArgumentParser(exit_on_error=False)).parse_args(line)
    found = re.match(errors.PHRASES[phrase], str(caught.value), re.DOTALL)
    version = metadata.version("jsonargparse")
    told = f"jsonargparse {version} reports {case} in other words than {WRITTEN_FOR}: {str(caught.value)!r}"
    assert found is not None, f"{told}; mend tempspec.cli.errors.PHRASES"
    assert found[1] == named


def test_a_key_of_a_subcommand_is_read_in_the_words_too():
    with pytest.raises(ArgumentError) as caught:
        commands().parse_object({"subcommand": "fit", "fit": {"other": 1}})
    assert re.match(errors.PHRASES["key"], str(caught.value))[1] == "other", str(caught.value)


def test_jsonargparse_keeps_types_where_they_are_read():
    made = parser(errors.Plain)
    made.parse_args(["--number", "1"])
    (action,) = [each for each in made._actions if each.dest == "number"]
    assert action._typehint is int
    assert made.args == ["--number", "1"]


TOLD = {
    "--number x": "number: expected int, got x",
    "--number 1 --inner.size x": "inner: size: expected int, got x",
    "--number 1 --inner.sise 1": "inner: Inner has no option 'sise', did you mean 'size'?",
    "--number 1 --inner [{size:1},{size:x}]": "inner: size: expected int, got x",
    "--number 1 --inner {}": "inner: its option size is missing",
    "--number 1 --inner 3": "inner: expected Inner or list of Inner, got 3",
    "--numbr 1": "unknown option --numbr: did you mean '--number'?",
    "--number 1 --config {numbr:1}": "unknown key numbr in the configuration: did you mean 'number'?",
}


@pytest.mark.parametrize("line", TOLD)
def test_a_report_is_one_line_that_says_what_was_got(line):
    words = [word.replace(":", ": ") if "{" in word else word for word in line.split()]
    with pytest.raises(UserError) as caught:
        parser(errors.Plain).parse_args(words)
    assert str(caught.value).startswith(TOLD[line])
    assert "\n" not in str(caught.value)


def test_a_wrong_name_lists_what_a_configuration_may_name():
    before = wrong_value.refusal(Verifier, "torch.optim.AdamW")

    class OfSomebodyElse(Verifier):
        """A class that some other part of the process has defined, where no configuration may reach it."""

        def verify(self, *unused):
            raise NotImplementedError

    assert not OfSomebodyElse.__abstractmethods__
    assert wrong_value.refusal(Verifier, "torch.optim.AdamW") == before
    assert "TokenwiseRejection" in before
