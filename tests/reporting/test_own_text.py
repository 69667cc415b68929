import pyarrow.parquet as pq
import pytest
import torch

from tempspec.core.acceptance import expected_tokens_by_position
from tempspec.errors import UserError
from tempspec.metrics.bootstrap import replicate_weights
from tempspec.metrics.ratio import ClusteredRatio, paired_difference
from tempspec.reporting.own_text import own_texts
from tempspec.reporting.runs import collect
from tests.reporting.runs import PROMPTS, write_own_texts

ALTERNATING = [0.2 if prompt % 2 else 0.6 for prompt in range(PROMPTS)]


def found(folder, rates, against="", **options):
    """What the study says of its one domain."""
    (own,) = own_texts(collect([write_own_texts(folder, rates, **options)], against))
    return own


def ratio(folder, draft, seeds, t, metric="analytic_acceptance", draft_t=None):
    """The acceptance of some seeds, from their files alone."""
    counted = ClusteredRatio()
    for seed in seeds:
        rows = pq.read_table(folder / f"{draft}-s{seed}" / "validate" / "acceptance.parquet").to_pylist()
        kept = [
            row
            for row in rows
            if (row["metric"], row["prompt_set"]) == (metric, f"chat sampled@{t:g}")
            and (row["target_temperature"], row["draft_temperature"]) == (t, t if draft_t is None else draft_t)
        ]
        numbers = (
            torch.tensor([row[name] for row in kept], dtype=torch.float64) for name in ("numerator", "denominator")
        )
        counted.update(*numbers, torch.tensor([row["prompt_key"] for row in kept]))
    return counted


def near(a, b):
    """Whether two estimates differ in the order of their sums alone."""
    return a.prompts == b.prompts and (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12)


def test_values_intervals_and_differences_are_those_of_the_rows(tmp_path):
    rates = {"a": {0: {0.0: 0.5, 1.0: 0.4}, 1: {0.0: 0.6, 1.0: 0.3}}, "b": {0: {0.0: 0.4, 1.0: 0.2}, 1: {1.0: 0.1}}}
    own = found(tmp_path, rates)
    assert own.temperatures == [0.0, 1.0]
    seeds = (0, 1)
    for line in own.values:
        assert near(line.at[1.0].estimate, ratio(tmp_path, line.name, seeds, 1.0).estimate())
        alone = [ratio(tmp_path, line.name, [seed], 1.0).estimate().point() for seed in seeds]
        assert line.at[1.0].note == " ".join(alone)
    assert near(own.values[1].at[0.0].estimate, ratio(tmp_path, "b", [0], 0.0).estimate())
    (difference,) = own.differences
    here, there = (ratio(tmp_path, name, [0, 1], 1.0) for name in ("b", "a"))
    assert near(difference.at[1.0].estimate, paired_difference(here, there))


def test_another_draft_temperature_would_be_another_value(tmp_path):
    own = found(tmp_path, {"a": {0: {1.0: 0.4}}})
    assert not near(own.values[0].at[1.0].estimate, ratio(tmp_path, "a", [0], 1.0, draft_t=2.0).estimate())


def test_a_difference_that_every_seed_and_the_interval_show(tmp_path):
    own = found(tmp_path, {"a": {s: {1.0: 0.4} for s in (0, 1, 2)}, "b": {s: {1.0: 0.5} for s in (0, 1, 2)}})
    assert own.differences[0].at[1.0].note == "3 of 3"
    assert own.differences[0].at[1.0].estimate.low > 0.09


def test_a_seed_of_the_other_sign_is_not_shown(tmp_path):
    rates = {"a": {s: {1.0: 0.4} for s in (0, 1, 2)}, "b": {0: {1.0: 0.6}, 1: {1.0: 0.6}, 2: {1.0: 0.35}}}
    (line,) = found(tmp_path, rates).differences
    assert line.at[1.0].note == "not shown, 2 of 3"
    assert line.at[1.0].estimate.low > 0


def test_an_interval_with_0_in_it_is_not_shown(tmp_path):
    rates = {"a": {s: {1.0: 0.39} for s in (0, 1)}, "b": {s: {1.0: ALTERNATING} for s in (0, 1)}}
    (line,) = found(tmp_path, rates).differences
    assert line.at[1.0].note == "not shown, 2 of 2"
    assert line.at[1.0].estimate.low < 0 < line.at[1.0].estimate.high


def test_too_few_prompts_for_an_interval_show_nothing(tmp_path):
    own = found(tmp_path, {"a": {0: {1.0: 0.1}}, "b": {0: {1.0: 0.9}}}, prompts=5)
    assert own.differences[0].at[1.0].note == "not shown, 1 of 1"


def test_two_drafts_are_compared_on_the_seeds_that_both_have(tmp_path):
    own = found(tmp_path, {"a": {0: {1.0: 0.4}, 1: {1.0: 0.9}}, "b": {0: {1.0: 0.5}, 2: {1.0: 0.9}}})
    (line,) = own.differences
    assert line.at[1.0].note == "1 of 1"
    assert line.at[1.0].estimate.value == pytest.approx(0.1)
    assert [each.seeds for each in own.values] == ["2 seeds", "2 seeds"]


def test_drafts_without_a_common_seed_are_not_compared(tmp_path):
    assert found(tmp_path, {"a": {0: {1.0: 0.4}}, "b": {1: {1.0: 0.5}}}).differences == []


def test_prompts_that_one_side_lacks_are_in_no_difference(tmp_path):
    folder = write_own_texts(tmp_path, {"a": {0: {1.0: 0.4}}, "b": {0: {1.0: 0.5}}})
    file = folder / "a-s0" / "validate" / "acceptance.parquet"
    rows = pq.read_table(file)
    pq.write_table(rows.filter([key >= 3 for key in rows["prompt_key"].to_pylist()]), file)
    (own,) = own_texts(collect([folder]))
    assert own.differences[0].at[1.0].estimate.prompts == PROMPTS - 3
    assert own.differences[0].at[1.0].estimate.value == pytest.approx(0.1)
    assert own.values[1].at[1.0].estimate.prompts == PROMPTS


def test_what_is_not_finished_is_named(tmp_path):
    own = found(tmp_path, {"a": {0: {1.0: 0.4}}, "b": {}}, planned=(8, 9))
    assert [(line.name, line.seeds) for line in own.values] == [("a", "1 of 3 seeds")]
    assert own.unmeasured == ["b"]


def test_drafts_of_the_reference_temperature_are_compared_with(tmp_path):
    labels = {"b": {"train_temperature": 1.0, "generation_temperature": 1.0}, "a": {"train_temperature": 1.0}}
    rates = {"a": {0: {1.0: 0.4}}, "b": {0: {1.0: 0.5}}}
    assert found(tmp_path / "labels", rates, labels=labels).against == "b"
    assert found(tmp_path / "none", rates).against == "a"
    assert found(tmp_path / "named", rates, against="a", labels=labels).against == "a"


def test_a_wrong_name_to_compare_with_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--against expected .* one of a, got 'b'"):
        found(tmp_path, {"a": {0: {1.0: 0.4}}, "b": {}}, against="b")


def test_a_name_is_refused_where_there_is_nothing_to_compare(tmp_path):
    folder = write_own_texts(tmp_path / "study", {"a": {0: {1.0: 0.4}}})
    assert own_texts(collect([folder / "a-s0"])) == []
    with pytest.raises(UserError, match="--against a: expected drafts that were measured"):
        own_texts(collect([folder / "a-s0"], "a"))


def test_the_two_domains_are_two_tables(tmp_path):
    folder = write_own_texts(tmp_path, {"a": {0: {1.0: 0.4}}}, domains={"chat": "in", "code": "out", "more": "in"})
    inside, outside = own_texts(collect([folder]))
    assert (inside.domain, outside.domain) == ("in the domain", "out of the domain")
    assert outside.values[0].at[1.0].estimate.prompts == PROMPTS


# -- tokens per round --------------------------------------------------------------------------------------------------


def rounds_of(folder, draft, seeds, t, tokens):
    """Point and replicates of `1 + a1 + a1 a2 + ..`, by a loop over replicates; from the files alone."""
    parts = []
    for number in range(1, tokens + 1):
        end = "" if number == 1 else f"/{number}"
        rows = [
            row
            for seed in seeds
            for row in pq.read_table(folder / f"{draft}-s{seed}" / "validate" / "acceptance.parquet").to_pylist()
            if (row["metric"], row["prompt_set"]) == ("analytic_acceptance", f"chat sampled@{t:g}{end}")
            and row["target_temperature"] == row["draft_temperature"] == t
        ]
        weight_MW = replicate_weights(torch.tensor([row["prompt_key"] for row in rows]))
        weight_MW = torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), weight_MW], 1)
        above, below = (
            torch.tensor([row[name] for row in rows], dtype=torch.float64) @ weight_MW
            for name in ("numerator", "denominator")
        )
        parts.append((above / below).tolist())
    return [expected_tokens_by_position(alphas) for alphas in zip(*parts, strict=True)]


LATER = {"a": [-0.1, 0.05], "b": [-0.2, -0.1]}
HEADS = {"a": {0: {1.0: 0.4}, 1: {1.0: 0.5}}, "b": {0: {1.0: 0.3}, 1: {1.0: 0.35}}}


def test_tokens_per_round_follow_from_each_tokens_acceptance(tmp_path):
    acceptance, rounds = own_texts(collect([write_own_texts(tmp_path, HEADS, later=LATER)]))
    assert (acceptance.measure, rounds.measure) == ("Acceptance", "Tokens per round")
    assert near(acceptance.values[0].at[1.0].estimate, ratio(tmp_path, "a", (0, 1), 1.0).estimate())
    for line in rounds.values:
        estimate, (point, *replicates) = line.at[1.0].estimate, rounds_of(tmp_path, line.name, (0, 1), 1.0, 3)
        assert estimate.value == pytest.approx(point, abs=1e-12)
        assert estimate.prompts == PROMPTS
        within = sum(estimate.low <= value <= estimate.high for value in replicates) / len(replicates)
        assert 0.94 < within < 0.98
        assert line.at[1.0].note == " ".join(f"{rounds_of(tmp_path, line.name, [s], 1.0, 3)[0]:.2f}" for s in (0, 1))
    (difference,) = rounds.differences
    here, there = (rounds_of(tmp_path, name, (0, 1), 1.0, 3)[0] for name in ("b", "a"))
    assert difference.at[1.0].estimate.value == pytest.approx(here - there, abs=1e-12)
    assert difference.at[1.0].note == "2 of 2"
    assert rounds.contrast == "Difference to a in tokens per round"


def test_a_draft_without_later_tokens_has_no_tokens_per_round(tmp_path):
    assert len(own_texts(collect([write_own_texts(tmp_path / "drafts", HEADS)]))) == 1
    _, rounds = own_texts(collect([write_own_texts(tmp_path / "both", HEADS, later={"a": LATER["a"]})]))
    assert [line.name for line in rounds.values] == ["a"]
    assert rounds.unmeasured == ["b"]


def test_a_draft_is_named_although_it_has_no_tokens_per_round(tmp_path):
    study = write_own_texts(tmp_path, HEADS | {"c": {0: {1.0: 0.2}}}, later=LATER)
    acceptance, rounds = own_texts(collect([study], "c"))
    assert acceptance.against == "c"
    assert [line.name for line in acceptance.differences] == ["a", "b"]
    assert rounds.against == "a"
    with pytest.raises(UserError, match="one of a, b, c, got 'd'"):
        own_texts(collect([study], "d"))
