import pytest

from tempspec.reporting.runs import collect
from tempspec.reporting.sections.validation import drafting, prefixes, temperatures
from tests.reporting.runs import write_small_study, write_validate


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return collect([write_small_study(tmp_path_factory.mktemp("study"))])


def test_text_sampled_at_a_temperature_is_read_at_it_alone(study):
    sheet = temperatures(study).sheets[0]
    found = {}
    for _, text, temperature, *_ in sheet.rows:
        found.setdefault(text, set()).add(temperature)
    assert found == {"in, fixed text": {0.0, 1.0, 1.5}, "in, sampled at T": {1.5}}


def test_a_run_that_is_no_study_keeps_the_names_of_its_sets(tmp_path):
    (sheet,) = temperatures(collect([write_validate(tmp_path / "run", 0.1)])).sheets
    assert {text for _, text, *_ in sheet.rows} == {"in"}


def test_sampled_drafting_is_compared_with_argmax_above_0(study):
    alts = [chart.alt for chart in drafting(study).charts if "in, fixed text" in chart.title]
    assert len(alts) == 2
    assert all("T = 1 +" in alt and "T = 1.5 +" in alt and "T = 0" not in alt for alt in alts)


def test_the_fall_of_acceptance_is_the_sum_of_its_two_parts(study):
    (sheet,) = prefixes(study).sheets
    assert {(name, temperature) for _, name, temperature, *_ in sheet.rows} == {("in", 1.5)}
    for *_, laws, sampled, fall in sheet.rows:
        assert laws.value + sampled.value == pytest.approx(fall.value)
        assert laws.value == pytest.approx(0.05)


def test_training_at_the_decoding_temperature_is_compared(study):
    sheet = temperatures(study).sheets[1]
    assert [(text, temperature, other) for text, temperature, other, _ in sheet.rows] == [
        ("in, fixed text", 1.0, 1.5),
        ("in, fixed text", 1.5, 1.0),
        ("in, sampled at T", 1.5, 1.0),
    ]
    assert all(row[3].value == pytest.approx(0) for row in sheet.rows)
