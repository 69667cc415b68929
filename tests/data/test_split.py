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


def test_a_larger_fraction_only_adds_rows_and_another_seed_takes_others(rows):
    held = [set(hold_out(rows, fraction, seed)[1]["text"]) for fraction, seed in [(0.1, 0), (0.3, 0), (0.3, 1)]]
    assert held[0] < held[1] != held[2]


def test_responses_to_one_prompt_stay_together(sentences):
    rows = datasets.Dataset.from_list(
        [{"prompt": sentences(number % 40), "response": str(number)} for number in range(200)]
    )
    kept, held = hold_out(rows, 0.3, seed=0)
    assert held["prompt"]
    assert not set(kept["prompt"]) & set(held["prompt"])
