import io

import pytest
from rich.console import Console

from tempspec.reporting.own_text import own_texts
from tempspec.reporting.own_text_table import OwnTextTable
from tempspec.reporting.runs import collect
from tests.reporting.runs import write_own_texts

TEMPERATURES = (0.0, 0.5, 1.0, 1.5)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Twelve drafts, three seeds, four temperatures; one draft has one seed, and one has none."""
    rates = {
        f"text-{draft / 2:g}-loss-1": {
            seed: {t: 0.2 + draft / 40 - (seed == 2) * (draft - 4) / 20 for t in TEMPERATURES}
            for seed in ([0] if draft == 1 else [0, 1, 2])
        }
        for draft in range(12)
    }
    folder = write_own_texts(tmp_path_factory.mktemp("study"), rates | {"[red]later[/]": {}}, planned=(0, 1, 2))
    (own,) = own_texts(collect([folder]))
    return own


def printed(own, width):
    """The table as a console of a width shows it."""
    console = Console(file=io.StringIO(), width=width)
    console.print(OwnTextTable(own))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_width_has_all_values_and_what_is_not_shown(own, width):
    text = printed(own, width)
    assert max(map(len, text.splitlines())) <= width
    for line in own.values:
        assert line.name in text
        assert all(found.estimate.point() in text for found in line.at.values())
    assert "1 of 3 seeds" in text
    assert "not measured: [red]later[/]" in text
    assert f"Difference to {own.against}" in text
    notes = [found.note for line in own.differences for found in line.at.values()]
    assert text.count("not shown") == sum(note.startswith("not shown") for note in notes) > 0


@pytest.mark.parametrize("width", [80, 120])
def test_intervals_and_seeds_are_there_from_80_columns_on(own, width):
    text = printed(own, width)
    for line in (*own.values, *own.differences):
        assert all(found.estimate.interval() in text for found in line.at.values())
    assert all(value in text for line in own.values for value in line.at[0.0].note.split())
    assert "2 of 3" in text


def test_a_narrow_console_says_what_it_leaves_out(own):
    assert "a wider console shows" in printed(own, 60)
    assert "a wider console shows" not in printed(own, 80)


def test_one_draft_has_no_differences(tmp_path):
    (own,) = own_texts(collect([write_own_texts(tmp_path, {"a": {0: {1.0: 0.4}}})]))
    assert "Difference" not in printed(own, 80)
