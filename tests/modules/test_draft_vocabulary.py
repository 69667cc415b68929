import datasets
import pytest

from tempspec.errors import UserError
from tempspec.modules.draft_vocabulary import frequent_ids

ROWS = datasets.Dataset.from_dict(
    {
        "input_ids": [[7, 7, 7, 1, 2], [2, 5, 1], [9, 2, 2]],
        "loss_mask": [[False, False, False, True, True], [True, True, True], [True, True, False]],
    }
)


def test_response_tokens_count_and_ties_take_the_lower_id():
    assert frequent_ids(ROWS, 2, 10).tolist() == [1, 2]
    assert frequent_ids(ROWS, 3, 10).tolist() == [1, 2, 5]


def test_ids_that_are_no_real_ones_are_left_out():
    assert frequent_ids(ROWS, 3, 9).tolist() == [1, 2, 5]
    assert 9 in frequent_ids(ROWS, 4, 10).tolist()


@pytest.mark.parametrize("size", [10, 11])
def test_a_vocabulary_of_all_tokens_is_refused(size):
    with pytest.raises(UserError, match="must be below the target's 10 tokens"):
        frequent_ids(ROWS, size, 10)
