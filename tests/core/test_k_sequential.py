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
