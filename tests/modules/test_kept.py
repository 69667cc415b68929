import pytest
import torch

from tempspec.modules.kept import Kept


def mask(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5


@pytest.mark.parametrize("mask_BT", [mask(3, 7), mask(1, 5), mask(4, 0), torch.zeros(2, 3, dtype=torch.bool)])
def test_looking_up_is_indexing_with_the_mask(mask_BT):
    kept = Kept.of(mask_BT)
    rows, width = mask_BT.shape
    value_BT, output_BTX = torch.randn(rows, width), torch.randn(rows, width + 1, 2)
    assert torch.equal(kept.values(value_BT), value_BT[mask_BT])
    assert torch.equal(kept.values(value_BT.expand(2, -1, -1)), value_BT.expand(2, -1, -1)[:, mask_BT])
    assert torch.equal(kept.outputs(output_BTX), output_BTX[:, :-1][mask_BT])
    assert torch.equal(kept.rows(value_BT.sum(1)), value_BT.sum(1)[:, None].expand_as(mask_BT)[mask_BT])


def test_spreading_undoes_looking_up():
    kept, value_BT = Kept.of(mask(3, 7)), torch.randn(3, 7)
    spread_BT = kept.spread(kept.values(value_BT))
    assert torch.equal(spread_BT[kept.mask_BT], value_BT[kept.mask_BT])
    assert spread_BT[~kept.mask_BT].isnan().all()


def test_gradients_are_those_of_indexing_with_the_mask():
    kept = Kept.of(mask(3, 7))
    once, twice = (torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    kept.outputs(once).square().sum().backward()
    twice[:, :-1][kept.mask_BT].square().sum().backward()
    assert torch.equal(once.grad, twice.grad)
