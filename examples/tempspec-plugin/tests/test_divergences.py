import pytest
import torch
from tempspec_example.divergences import Renyi

from tempspec.core.divergences import forward_kl
from tempspec.testing import check_divergence


@pytest.mark.parametrize("order", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scale", ["none", "gradient"])
def test_it_keeps_the_laws_of_its_family(order, scale):
    check_divergence(Renyi(order, scale))


def test_by_hand():
    logp, logq = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    expected = -2 * torch.log(torch.tensor(0.45).sqrt() + torch.tensor(0.05).sqrt())
    torch.testing.assert_close(Renyi(0.5).per_position(logp, logq), expected)


def test_near_order_1_it_is_forward_kl():
    logp, logq = torch.randn((2, 4, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(Renyi(1 - 1e-7).per_position(logp, logq), forward_kl(logp, logq), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("order", [0.0, 1.0, -1.0, float("nan")])
def test_another_order_is_refused(order):
    with pytest.raises(ValueError, match="order must be strictly between 0 and 1"):
        Renyi(order)
