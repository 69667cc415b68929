"""A step runs once, again when what it depends on changes, and with what it left when only more is wanted."""

import pytest

from tempspec.cli.steps import Step, finished_seconds, run_steps


@pytest.fixture
def job(tmp_path):
    """Runs steps that add a line to a file each; returns the lines of each file."""

    def run(*steps):
        def made(name, options):
            file = tmp_path / name
            write = lambda: file.write_text((file.read_text() if file.exists() else "") + "x")  # noqa: E731
            return Step(name, name, "command", write, (file,), **options)

        run_steps([made(*step) for step in steps], tmp_path / "steps")
        assert set(finished_seconds([made(*step) for step in steps], tmp_path / "steps")) == {name for name, _ in steps}
        return {name: len((tmp_path / name).read_text()) for name, _ in steps}

    return run


def wants(count, **options):
    return {"depends": ("same",), "asks": (str(count),)} | options


def test_a_step_that_keeps_its_rows_adds_to_them(job):
    assert job(("a", wants(1, keeps=True))) == {"a": 1}
    assert job(("a", wants(1, keeps=True))) == {"a": 1}
    assert job(("a", wants(2, keeps=True))) == {"a": 2}
    assert job(("a", wants(2, keeps=True, depends=("other",)))) == {"a": 1}  # of no use: it begins anew


def test_a_step_that_keeps_nothing_begins_anew(job):
    for count in (1, 2):
        assert job(("a", wants(count))) == {"a": 1}


def test_steps_after_one_that_grew_run_again(job):
    for count, found in ((1, 1), (2, 2)):
        assert job(("a", wants(count, keeps=True)), ("b", wants(0, keeps=True))) == {"a": found, "b": found}


def test_a_step_that_is_alone_depends_on_none_before_it(job):
    for count in (1, 2):
        assert job(("a", wants(count)), ("b", wants(0, alone=True, keeps=True))) == {"a": 1, "b": 1}
