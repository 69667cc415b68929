import pytest

from tempspec.cli.serve_check.verdicts import HYPOTHESES, TIE, of_drafted, of_own_count, of_text, of_tokens, verdict
from tempspec.metrics.parity import Counted, figures


def column(share):
    """Ten prompts of which each accepts this share of its tests, exactly."""
    return figures(Counted.of_reached(key, 100, 100, [100 * share, 100 * share**2]) for key in range(10))


COLUMNS = {"same": column(0.7), "argmax": column(0.4), "uncut": column(0.6)}


@pytest.mark.parametrize(
    ("share", "agrees", "says"),
    [
        (0.7, True, "agrees"),
        (0.4, False, HYPOTHESES["argmax"]),
        (0.6, False, HYPOTHESES["uncut"]),
        (0.5, False, "another draft: its figures are those of none of our columns (same, argmax, uncut)"),
    ],
)
def test_an_engine_is_what_its_figures_fit(share, agrees, says):
    found = verdict(1.0, column(share), COLUMNS, among=8)
    assert (found.agrees, found.says) == (agrees, says)
    assert [line.name for line in found.lines] == ["acceptance rate", "block efficiency", "position 1", "position 2"]
    assert found.lines[2].difference.value == pytest.approx(share - 0.7)


def test_a_draft_that_differs_at_0_is_another_at_every_t():
    found = verdict(1.0, column(0.4), COLUMNS, among=8, alike=False)
    assert (found.agrees, found.says) == (False, "another draft, as at T = 0, where nothing is sampled")
    assert verdict(1.0, column(0.7), COLUMNS, among=8, alike=False).agrees


def test_columns_that_cannot_be_told_from_each_other_are_named():
    found = verdict(1.0, column(0.7), {"same": column(0.7), "argmax": column(0.7)}, among=8)
    assert found.agrees
    assert found.says == "agrees; so does our argmax column, which more prompts would tell from it"


def test_five_prompts_tell_nothing():
    few = figures(Counted.of_reached(key, 9, 9, [5, 3]) for key in range(5))
    assert verdict(1.0, few, {"same": few}, among=4).agrees is None


def test_a_text_differs_where_tokens_are_no_near_tie():
    pairs = [([1, 2, 3], [1, 2, 3]), ([1, 5, 3], [1, 2, 3])]
    assert of_text(pairs, lambda number, place: TIE / 2).agrees
    asked = []

    def gap(number, place):
        asked.append((number, place))
        return 2.5

    found = of_text(pairs, gap)
    assert not found.agrees
    assert "1 of 2 texts are equal; that of request 2 differs from token 2 on, where theirs is 2.50 nats" in found.says
    assert set(asked) == {(1, 1)}
    assert of_text([], gap).agrees is None


def test_tokens_lengths_and_definitions():
    assert of_tokens("tokenizer", None, [1]) is None
    assert of_tokens("tokenizer", [1, 2], [1, 2]).agrees
    assert of_tokens("chat template", [1, 2], [1, 2, 3]).says.endswith("from token 3 on (2 there, 3 here)")
    assert of_drafted(4, 4) is None
    assert not of_drafted(5, 4).agrees
    assert of_own_count(20, 10, 2.0) is None
    assert "2.70, leaves out rounds" in of_own_count(27, 10, 1.99).says
