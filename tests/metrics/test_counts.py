import math

import pytest

from tempspec.metrics.counts import finite_total, number, total
from tempspec.metrics.rows import DecodedRow


@pytest.mark.parametrize("column", sorted(DecodedRow.__optional_keys__ - {"text", "timing_slots"}))
@pytest.mark.parametrize("count", [total, finite_total, number])
def test_rows_that_lack_a_later_column_count_nothing(count, column):
    assert count(column)({"tested": [2, 2]}) == 0
    assert total("tested", where=column)({"tested": [2, 2]}) == 0
    assert total("tested", where=column)({"tested": [2, 2], column: [0.0]}) == 4


@pytest.mark.parametrize("count", [total, finite_total, number])
def test_a_column_that_every_row_has_is_never_taken_for_0(count):
    with pytest.raises(KeyError, match="accepted"):
        count("accepted")({"tested": [2, 2]})


def test_only_infinity_has_no_finite_total():
    assert finite_total("kl")({"kl": [0.5, 1.5]}) == total("kl")({"kl": [0.5, 1.5]}) == 2
    assert math.isnan(finite_total("kl")({"kl": [0.5, math.inf]}))
