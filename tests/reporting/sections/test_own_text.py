import csv

import pytest

from tempspec.reporting.own_text import own_texts
from tempspec.reporting.page import write_report
from tempspec.reporting.runs import collect
from tempspec.reporting.sections.own_text import own_text
from tests.reporting.runs import write_own_texts

RATES = {"a": {0: {0.0: 0.5, 1.0: 0.4}, 1: {1.0: 0.4}}, "b": {0: {0.0: 0.6, 1.0: 0.4}, 1: {1.0: 0.5}}, "later": {}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return collect([write_own_texts(tmp_path_factory.mktemp("study"), RATES)])


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    return write_report(study, tmp_path_factory.mktemp("report"))


def test_the_page_has_values_seeds_and_what_is_not_shown(study, page):
    text = page.read_text(encoding="utf-8")
    (own,) = own_texts(study)
    seeds = own.values[0].at[1.0].note
    assert len(seeds.split()) == 2
    assert "Acceptance on the target&#39;s own text" in text
    assert "not measured: later" in text
    assert '<br><span class="soft">' + seeds + "</span>" in text
    assert '<br><span class="soft">not shown, 1 of 2</span>' in text


def test_the_files_have_a_line_for_each_draft(page):
    with (page.parent / "tables" / "own-text-difference.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["draft"], row["seeds"], row["T = 0 note"], row["T = 1 note"]) == (
        "b",
        "2 seeds",
        "1 of 1",
        "not shown, 1 of 2",
    )
    assert float(row["T = 1"]) == pytest.approx(0.05)
    assert float(row["T = 1 low"]) > 0
    assert " & 2 seeds & +.100" in (page.parent / "tables" / "own-text-difference.tex").read_text(encoding="utf-8")


def test_domains_have_tables_of_their_own(tmp_path):
    folder = write_own_texts(tmp_path, {"a": RATES["a"]}, domains={"chat": "in", "code": "out"})
    names = [sheet.name for sheet in own_text(collect([folder])).sheets]
    assert len(names) == len(set(names)) == 2
