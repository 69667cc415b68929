import pytest
import torch

from tempspec.metrics.coverage import Coverage


def test_batches_add_up_and_filler_rows_do_not_count():
    torch.manual_seed(0)
    mass, weight = torch.rand(9, 2), torch.tensor([1.0] * 6 + [0.0] * 3)
    whole, parts = Coverage([0.0, 1.0]), Coverage([0.0, 1.0])
    whole.update(mass, weight)
    for rows in (slice(0, 4), slice(4, 9)):
        parts.update(mass[rows], weight[rows])
    expected = dict(zip([0.0, 1.0], mass[:6].double().mean(0).tolist(), strict=True))
    assert whole.compute() == pytest.approx(expected)
    assert parts.compute() == pytest.approx(expected)


def test_filler_rows_alone_are_no_coverage():
    coverage = Coverage([1.0])
    coverage.update(torch.ones(2, 1), torch.zeros(2))
    assert coverage.compute() == {1.0: 0.0}
