import math

import pytest
import torch

from tempspec.core.reduce import masked_sum_and_count

VALUE = torch.arange(6.0).view(2, 3)
MASK = torch.tensor([[True, False, True], [False, True, False]])


@pytest.mark.parametrize("hidden", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "weight", [None, torch.tensor([[2.0], [0.5]]), torch.rand(2, 3) + 0.1], ids=["none", "row", "all"]
)
def test_masking_equals_indexing_in_value_and_gradient(hidden, weight):
    value = VALUE.masked_fill(~MASK, hidden).requires_grad_()
    total, count = masked_sum_and_count(value, MASK, weight)
    kept = torch.ones(2, 3)[MASK] if weight is None else weight.expand(2, 3)[MASK]
    torch.testing.assert_close(total, (VALUE[MASK] * kept).sum())
    torch.testing.assert_close(count, kept.sum())
    total.backward()
    expected = torch.zeros(2, 3)
    expected[MASK] = kept
    torch.testing.assert_close(value.grad, expected)


def test_a_weight_of_zero_leaves_out():
    value = torch.tensor([[1.0, 2.0], [math.nan, math.inf]], requires_grad=True)
    total, count = masked_sum_and_count(value, torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1.0], [0.0]]))
    total.backward()
    assert (total.item(), count.item()) == (3.0, 2.0)
    assert value.grad.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_all_masked_is_zero_of_zero():
    total, count = masked_sum_and_count(VALUE * math.nan, torch.zeros(2, 3, dtype=torch.bool))
    assert (total.item(), count.item()) == (0.0, 0.0)


def test_sums_and_counts_add_up_over_batches():
    whole = masked_sum_and_count(VALUE, MASK)
    parts = [masked_sum_and_count(VALUE[i : i + 1], MASK[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(whole, tuple(sum(pair) for pair in zip(*parts, strict=True)))


def test_half_precision_is_summed_in_float32():
    value = torch.ones(1, 4096, dtype=torch.bfloat16)
    total, count = masked_sum_and_count(value, torch.ones(1, 4096, dtype=torch.bool))
    assert (total.item(), count.item(), total.dtype) == (4096.0, 4096.0, torch.float32)


def test_what_is_not_masked_is_not_repaired():
    assert masked_sum_and_count(torch.tensor([[1.0, math.nan]]), torch.ones(1, 2, dtype=torch.bool))[0].isnan()


@pytest.mark.parametrize("mask", [MASK.float(), MASK[:, :1], MASK[0]], ids=["float", "one column", "one row"])
def test_a_mask_of_another_kind_is_refused(mask):
    with pytest.raises(ValueError, match=r"expected a bool mask of the values' shape \[2, 3\], got"):
        masked_sum_and_count(VALUE, mask)
