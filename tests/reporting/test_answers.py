import pytest

from tempspec.metrics.bootstrap import contrast_estimate
from tempspec.reporting.answers import answers
from tempspec.reporting.runs import collect
from tests.reporting.runs import write_predict, write_small_study

STEADY = {0.0: 0.7, 1.0: 0.7}
FALLING = {0.0: 0.9, 1.0: 0.3}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return answers(collect([write_small_study(tmp_path_factory.mktemp("study"))]))


@pytest.mark.parametrize(("rates", "shown", "said"), [(FALLING, True, "falls: -"), (STEADY, False, "Not shown: ")])
def test_an_effect_is_claimed_only_where_the_interval_leaves_zero_out(tmp_path, rates, shown, said):
    first = answers(collect([write_predict(tmp_path / "run", rates)]))[0]
    assert first.shown == shown
    assert said in first.sentence
    assert "n = 12 prompts" in first.sentence


def test_a_question_without_its_data_says_what_it_needs(tmp_path):
    found = answers(collect([write_predict(tmp_path / "run", {1.0: 0.5})]))
    assert [answer.sentence.partition(":")[0] for answer in found] == ["Not measured here"] * 4
    assert not any(answer.shown for answer in found)


def test_a_study_answers_all_four(study):
    assert [answer.sentence.partition(":")[0].startswith("Not measured") for answer in study] == [False] * 4


def test_training_at_the_temperature_is_credited_with_what_it_gains(study):
    assert study[1].shown
    assert study[1].sentence.startswith("Acceptance at T = 1.5 when trained there instead of at 1 rises: +")


def test_domains_that_accept_alike_are_not_told_apart(study):
    assert "out of domain (out)" in study[2].sentence
    assert not study[2].shown


def test_the_best_of_several_has_the_interval_of_all_of_them(tmp_path):
    runs = [write_predict(tmp_path / name, {1.5: rate}) for name, rate in (("a", 0.5), ("b", 0.7), ("c", 0.6))]
    collection = collect(runs)
    last = answers(collection)[3]
    assert "with b, token, draft T = 1.5 (the best of 2, intervals simultaneous) rises: +" in last.sentence
    base, best = (next(iter(draft.metrics.metrics)).block_efficiency.sums() for draft in collection.drafts[:2])
    alone, among = (contrast_estimate((1, best), (-1, base), among=count)[0].tolist() for count in (1, 2))
    assert among[1] < alone[1] < alone[0] < alone[2] < among[2]
    assert f"[{among[1]:.2f}, " in last.sentence or f"[{among[1]:.3f}, ".replace("0.", ".") in last.sentence
