import pytest
import torch

from tempspec.core.k_sequential import sequential_beta, sequential_division
from tempspec.core.noise import gumbel

SPREADS = {"flat": 0.3, "ordinary": 1.0, "sharp": 20.0}


def laws(vocabulary, spread, seed, rows=300):
    row, token = torch.arange(rows)[:, None], torch.arange(vocabulary)
    return (spread * gumbel(seed, row, token)).log_softmax(-1)


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_division_is_never_too_small(count, spread):
    p, q = laws(6, spread, 5).exp(), laws(6, spread, 6).exp()
    rho = sequential_division(p, q, torch.full((300,), count))
    beta = sequential_beta(p, q, rho)
    assert (1 - (1 - beta) ** count <= rho * beta + 1e-12).all()
    assert ((rho >= 1) & (rho <= count)).all()
    assert (1 - (1 - beta) ** count >= rho * beta - 1e-4).all()


@pytest.mark.parametrize("count", [2, 3, 8])
def test_rho_of_half_the_precision_is_the_same_rho(count):
    p, q, k = laws(40, 1.0, 5).exp(), laws(40, 1.0, 6).exp(), torch.full((300,), count)
    exact, rough = sequential_division(p, q, k), sequential_division(p.float(), q.float(), k)
    assert (exact < count - 0.1).double().mean() > 0.5
    torch.testing.assert_close(rough, exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_division_arrives_at_the_bisected_rho(count, near):
    """Bisection of the equation that defines it, in float64; what is lost is a share of acceptance."""
    p, k = torch.cat([laws(30, spread, 5) for spread in SPREADS.values()]).exp(), torch.full((900,), count)
    q = torch.cat([laws(30, spread, 6) for spread in SPREADS.values()]).exp()
    q = (p * laws(30, 0.3, 7).exp().repeat(3, 1)) if near else q
    q = q / q.sum(-1, keepdim=True)
    low, high = torch.ones(900).double(), k.double()
    for _ in range(60):
        middle = (low + high) / 2
        beta = sequential_beta(p, q, middle)
        left = 1 - (1 - beta) ** count >= middle * beta
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    wanted, found = (1 - (1 - sequential_beta(p, q, rho)) ** count for rho in (high, sequential_division(p, q, k)))
    assert (found <= wanted + 1e-12).all()
    assert (found >= wanted - 1e-4).all()
    assert (wanted - found).mean() < 1e-6


def test_single_precision_is_never_too_small_beyond_rounding():
    for count in (2, 4, 8):
        p, q = laws(100, 4.0, 5).exp().float(), laws(100, 4.0, 6).exp().float()
        rho = sequential_division(p, q, torch.full((300,), count))
        beta = sequential_beta(p, q, rho)
        assert (1 - (1 - beta) ** count <= rho * beta + 1e-6).all()
