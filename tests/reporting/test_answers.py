import json
import shutil

import pytest

from tempspec.metrics.bootstrap import contrast_estimate
from tempspec.reporting.answers import answers
from tempspec.reporting.runs import collect
from tests.reporting.runs import write_predict, write_small_study, write_validate

STEADY = {0.0: 0.7, 1.0: 0.7}
FALLING = {0.0: 0.9, 1.0: 0.3}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return answers(collect([write_small_study(tmp_path_factory.mktemp("study"))]))


@pytest.mark.parametrize(("rates", "shown", "said"), [(FALLING, True, "falls: -"), (STEADY, False, "Not shown: ")])
def test_an_effect_is_claimed_where_the_interval_excludes_zero(tmp_path, rates, shown, said):
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


def test_training_at_the_temperature_is_credited_its_gain(study):
    assert study[1].shown
    decoded, analytic = study[1].sentence.split("; ")
    assert decoded.startswith("Acceptance at T = 1.5 when trained there instead of at 1 rises: +")
    assert analytic.startswith(
        "not shown: analytic acceptance at T = 1.5 when trained there instead of at 1 changes by "
    )
    assert analytic.endswith(": in, sampled at T).")


def test_drafts_never_decoded_are_compared_by_their_laws(tmp_path):
    folder = write_small_study(tmp_path / "study")
    for name in ("cold", "hot"):
        shutil.rmtree(folder / name / "predict")
        write_validate(folder / name, {"cold": 0.2, "hot": 0.1}[name], sets=("in",))
    sentence = answers(collect([folder]))[1].sentence
    assert sentence.startswith("Analytic acceptance at T = 1.5 when trained there instead of at 1 rises: +.150 ")


def test_domains_that_accept_alike_are_not_told_apart(study):
    assert "out of domain (out)" in study[2].sentence
    assert not study[2].shown


@pytest.mark.parametrize(("fall", "shown"), [(0.4, True), (0.0, False)])
def test_the_trained_range_is_credited_what_others_keep_beyond(tmp_path, fall, shown):
    rates = {"narrow": {1.0: 0.8, 2.0: 0.8 - fall}, "wide": {1.0: 0.7, 2.0: 0.7}}
    folder = write_small_study(tmp_path / "study")
    for name, trained in (("narrow", "0.5 to 1"), ("wide", "0.25 to 2")):
        write_predict(folder / name, rates[name], sets=("in", "out"))
        draft = {"labels": {"train_temperature": trained}, "seeds": {"0": name}}
        index = json.loads((folder / "study.json").read_text())
        index["drafts"] = {k: v for k, v in index["drafts"].items() if k in rates} | {name: draft}
        (folder / "study.json").write_text(json.dumps(index))
    third = answers(collect([folder]))[2]
    other, outside, both = third.sentence.lower().split("; ")
    assert "acceptance at t = 1 out of domain (out)" in other
    assert ("acceptance at t = 2 out of the trained range falls: -" in outside) == shown
    assert ("out of the trained range and out of domain (out) falls: -" in both) == shown
    assert "narrow, trained at 0.5 to 1, against wide, trained at 0.25 to 2, from t = 1" in outside
    assert third.shown == shown
    assert ("not shown: acceptance at T = 2" in third.sentence) != shown


def test_sampled_and_argmax_proposals_are_told_apart(tmp_path):
    run = write_predict(tmp_path / "run", {1.0: 0.7, 2.0: 0.5}, draft_temperatures=(None, 0.0))
    assert "at T = 2 when proposals are sampled instead of argmax" in answers(collect([run]))[0].sentence


def test_the_best_of_several_has_the_interval_of_all_of_them(tmp_path):
    runs = [write_predict(tmp_path / name, {1.5: rate}) for name, rate in (("a", 0.5), ("b", 0.7), ("c", 0.6))]
    collection = collect(runs)
    last = answers(collection)[3]
    assert "with b, token, draft T = 1.5 (the best of 2, intervals simultaneous) rises: +" in last.sentence
    base, best = (next(iter(draft.metrics.metrics)).block_efficiency.sums() for draft in collection.drafts[:2])
    alone, among = (contrast_estimate((1, best), (-1, base), among=count)[0].tolist() for count in (1, 2))
    assert among[1] < alone[1] < alone[0] < alone[2] < among[2]
    assert f"[{among[1]:.2f}, " in last.sentence or f"[{among[1]:.3f}, ".replace("0.", ".") in last.sentence


def test_a_lossy_rule_that_wins_is_said_to_change_the_text(tmp_path):
    runs = [write_predict(tmp_path / name, {1.5: rate}) for name, rate in (("a", 0.5), ("b", 0.7))]
    collection = collect(runs)
    for row in collection.drafts[1].rows:
        row["total_variation"], row["kl"] = [0.25 * tested for tested in row["tested"]], [0.1] * len(row["tested"])
    assert ", whose text is .250 off the target's distribution " in answers(collection)[3].sentence


def test_few_prompts_claim_nothing(tmp_path):
    runs = [write_predict(tmp_path / name, {1.5: rate}, prompts=5) for name, rate in (("a", 0.2), ("b", 0.9))]
    last = answers(collect(runs))[3]
    assert not last.shown
    assert last.sentence.startswith("Not shown: block efficiency at T = 1.5 with b")
    assert "(too few for an interval, n = 5 prompts: " in last.sentence
