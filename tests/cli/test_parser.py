"""Configurations in general: parsed or refused in one line, and the same in a file, as flags and printed."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import capture_parser

from tempspec.cli import lightning
from tempspec.cli.parser import Parser
from tempspec.data.module import TextDataModule
from tempspec.errors import UserError

few = settings(max_examples=max(settings.default.max_examples // 5, 1))  # to parse takes tenths of a second

GOOD = {
    "run": "runs/x",
    "trainer": {"max_steps": 5, "precision": "bf16-mixed"},
    "model": {
        "target": "x",
        "draft": "y",
        "divergence": {"class_path": "JensenShannon", "init_args": {"beta": 0.3}},
        "temperature": {"class_path": "Uniform", "init_args": {"low": 0.5, "high": 1.5}},
        "verifiers": {"token": "TokenwiseRejection"},
        "sweep": {"target_temperatures": [0.0, 1.0], "draft_temperatures": ["same", 0.0]},
    },
    "data": {"train": {"path": "a.jsonl"}, "prompts": {"p": {"path": "c.jsonl"}}, "max_length": 16},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("os.system"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=4,
)
OPTIONS = {
    "trainer.max_steps": st.integers(1, 10**6),
    "model.divergence": st.sampled_from(["ForwardKL", "TotalVariation"]),
    "model.label_weight": st.floats(0, 1),
    "model.validation_temperatures": st.lists(st.floats(0, 3), min_size=1, max_size=3),
    "model.sweep.max_new_tokens": st.integers(1, 10**6),
    "model.sweep.top_p": st.floats(0.01, 1),
    "data.batch_size": st.integers(1, 512),
    "data.collapse_whitespace": st.booleans(),
}
"""Options of every kind, each with values that it accepts."""


@pytest.fixture(scope="module")
def parser():
    return capture_parser(lambda: lightning.run(["fit"]))


def parsed(parser, configuration, *flags):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yaml")
        path.write_text(yaml.safe_dump(configuration))
        found = parser.parse_args(["fit", "--config", str(path), *flags])
    found.fit.pop("config")
    return found


def places(configuration, above=()):
    """Every entry, from the outside in."""
    for name, value in configuration.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from places(value, (*above, name))


@few
@given(place=st.sampled_from(list(places(GOOD))), name=st.none() | st.text(max_size=6), value=VALUES)
def test_any_value_anywhere_is_taken_or_refused_in_one_line(parser, place, name, value):
    configuration = copy.deepcopy(GOOD)
    section = configuration
    for each in place[:-1]:
        section = section[each]
    section[place[-1] if name is None else name] = value
    refusal = ""
    try:
        parsed(parser, configuration)
    except UserError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) <= 1


@few
@given(options=st.fixed_dictionaries({}, optional=OPTIONS))
def test_flags_files_and_what_is_printed_say_the_same(parser, options):
    nested = copy.deepcopy(GOOD)
    for option, value in options.items():
        *sections, name = option.split(".")
        section = nested
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
    by_file = parsed(parser, nested)
    by_flags = parsed(parser, GOOD, *(part for name, value in options.items() for part in (f"--{name}", text(value))))
    assert by_flags.as_dict() == by_file.as_dict()
    printed = yaml.safe_load(parser.dump(by_file))["fit"]
    assert parsed(parser, printed).as_dict() == by_file.as_dict()


def text(value):
    """A value as a user types it."""
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize(
    "content", ['[{"path": "x"}, {"path": "y"}]', '{"path": "x"}', '[{"instruction": "a", "output": "b"}]']
)
def test_a_data_file_is_never_read_for_options(tmp_path, content):
    file = tmp_path / "rows.json"
    file.write_text(content)
    parser = Parser(exit_on_error=False)
    parser.add_lightning_class_args(TextDataModule, "data")
    told = parser.parse_args([f"--data.train={file}", f"--data.prompts={{c: {file}}}"])
    module = parser.instantiate(told).data
    assert [source.path for source in module.train_sources] == [str(file)]
    assert module.prompt_sources["c"].path == str(file)
