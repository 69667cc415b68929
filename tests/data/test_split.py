import datasets
import pytest

from tempspec.data.split import hold_out


@pytest.fixture
def rows(sentences):
    return datasets.Dataset.from_list([{"text": sentences(number)} for number in range(400)])


def test_the_sides_part_the_rows(rows):
    kept, held = hold_out(rows, 0.25, seed=0)
    assert sorted(kept["text"][:] + held["text"][:]) == sorted(rows["text"])
    assert 70 <= len(held) <= 130  # 100 expected, a standard deviation of 8.7


def test_a_row_keeps_its_side_in_any_order_and_company(rows):
    _, held = hold_out(rows, 0.25, seed=0)
    _, shuffled = hold_out(rows.shuffle(seed=1), 0.25, seed=0)
    _, half = hold_out(rows.select(range(200)), 0.25, seed=0)
    assert set(held["text"]) == set(shuffled["text"])
    assert set(half["text"]) == set(held["text"]) & set(rows["text"][:200])


def test_a_larger_fraction_adds_rows_another_seed_takes_others(rows):
    held = [set(hold_out(rows, fraction, seed)[1]["text"]) for fraction, seed in [(0.1, 0), (0.3, 0), (0.3, 1)]]
    assert held[0] < held[1] != held[2]


def test_responses_to_one_prompt_stay_together(sentences):
    rows = datasets.Dataset.from_list(
        [{"prompt": sentences(number % 40), "response": str(number)} for number in range(200)]
    )
    kept, held = hold_out(rows, 0.3, seed=0)
    assert held["prompt"]
    assert not set(kept["prompt"]) & set(held["prompt"])


@pytest.mark.parametrize("rows_", [2, 3, 12])
@pytest.mark.parametrize("fraction", [1e-9, 0.05, 0.999999])
def test_of_two_different_rows_or_more_each_side_has_one(sentences, rows_, fraction):
    few = datasets.Dataset.from_list([{"text": sentences(number)} for number in range(rows_)])
    kept, held = hold_out(few, fraction, seed=0)
    assert len(kept) >= 1 <= len(held)
    assert len(kept) + len(held) == rows_
    assert set(held["text"]) == set(hold_out(few.shuffle(seed=1), fraction, seed=0)[1]["text"])


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "a", "a"]])
def test_rows_of_one_content_are_kept(texts):
    kept, held = hold_out(datasets.Dataset.from_dict({"text": texts}), 0.5, seed=0)
    assert (len(kept), len(held)) == (len(texts), 0)


def test_nothing_is_held_out_where_nothing_is_asked_for(rows):
    assert [len(side) for side in hold_out(rows, 0, seed=0)] == [400, 0]


def test_rows_beyond_what_is_allowed_stay_in_training(rows):
    sides = [hold_out(rows, 0.25, seed=0, most=most) for most in (None, 50, 10, 1)]
    held = [set(held["text"]) for _, held in sides]
    assert [len(each) for each in held[1:]] == [50, 10, 1]
    assert held[0] > held[1] > held[2] > held[3]
    assert all(len(kept) + len(out) == 400 for kept, out in sides)


def test_a_limit_parts_no_responses_to_one_prompt(sentences):
    rows = datasets.Dataset.from_list(
        [{"prompt": sentences(number % 40), "response": str(number)} for number in range(200)]
    )
    kept, held = hold_out(rows, 0.9, seed=0, most=12)
    assert len(held) == 10  # two prompts of five; a third would be too many
    assert not set(kept["prompt"]) & set(held["prompt"])
