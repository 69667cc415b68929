import itertools

import pytest
import torch

from tempspec.core.sparse import draw, top_k
from tempspec.errors import UserError
from tempspec.plugins import divergences

TEMPERATURES = [0.5, 1.0, 2.0]
SAMPLED = ["ForwardKL", "ReverseKL", "JensenShannon", "SkewKL", "SkewReverseKL", "TotalVariation"]


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 9, generator=generator, dtype=torch.float64) for _ in range(2)]


def value(name, logp, logq):
    return getattr(divergences, name)()(logp[None], logq[None])[0]


@pytest.mark.parametrize("name", [*SAMPLED, "NegativeLogAcceptance", "LKHybrid", "AlphaBeta", "AdaptiveKL", "TAID"])
@pytest.mark.parametrize("tau", [0.5, 0.7, 2.0])
def test_a_cache_of_all_tokens_is_the_whole_teacher(logits, name, tau):
    z_p, z_q = logits
    logq = (z_q / tau).log_softmax(-1).requires_grad_()
    temperature = torch.full((4,), tau, dtype=torch.float64)
    got = value(name, *top_k(z_p, 9, TEMPERATURES).laws(temperature, logq))
    expected = value(name, (z_p / tau).log_softmax(-1), logq)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    slopes = [torch.autograd.grad(each.sum(), logq, retain_graph=True)[0] for each in (got, expected)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [*SAMPLED, "NegativeLogAcceptance"])
def test_one_cell_for_the_tail_makes_no_divergence_larger(logits, name):
    z_p, z_q = logits
    logq, ones = z_q.log_softmax(-1), torch.ones(4, dtype=torch.float64)
    found = [value(name, *top_k(z_p, k, TEMPERATURES).laws(ones, logq)) for k in (1, 4, 8, 9)]
    for fewer, more in itertools.pairwise(found):
        assert (fewer <= more + 1e-12).all()


@pytest.mark.parametrize("k", [2, 6])
def test_the_tail_has_its_exact_mass_at_every_temperature_kept(logits, k):
    z_p, z_q = logits
    for tau in TEMPERATURES:
        kept = top_k(z_p, k, TEMPERATURES)
        logp, logq = kept.laws(torch.full((4,), tau, dtype=torch.float64), z_q.log_softmax(-1))
        exact = (z_p / tau).softmax(-1).gather(-1, kept.token_NK)
        torch.testing.assert_close(logp[:, :-1].exp(), exact)
        for law in (logp, logq):
            torch.testing.assert_close(law.exp().sum(-1), torch.ones(4, dtype=torch.float64))


def test_the_tail_is_near_between_temperatures_refused_outside(logits):
    z_p, z_q = logits
    kept, logq = top_k(z_p, 4, TEMPERATURES), z_q.log_softmax(-1)
    between = torch.full((4,), 0.75, dtype=torch.float64)
    exact = (z_p / 0.75).softmax(-1).gather(-1, kept.token_NK)
    got = kept.laws(between, logq)[0][:, :-1].exp()
    torch.testing.assert_close(got, exact, atol=0.05, rtol=0)
    assert (got <= exact + 1e-12).all()
    with pytest.raises(UserError, match=r"must be between those of the cached teacher, 0\.5, 1, 2, got 3 to 3"):
        kept.laws(torch.full((4,), 3.0, dtype=torch.float64), logq)
    with pytest.raises(UserError, match="got 1 to 3"):
        kept.laws(torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64), logq)


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_samples_estimate_value_and_gradient_without_bias(logits, name, tau):
    z_p, z_q = (each[:1] for each in logits)
    count = 40_000
    noise = torch.rand(count, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = draw(noise, z_p.expand(count, -1), 1.0, TEMPERATURES)
    free = (z_q / tau).requires_grad_()
    logq = free.log_softmax(-1)
    temperature = torch.full((count,), tau, dtype=torch.float64)
    each = value(name, *kept.laws(temperature, logq.expand(count, -1)))
    expected = value(name, (z_p / tau).log_softmax(-1), logq)
    error = each.std() / count**0.5
    assert abs(float((each.mean() - expected).detach())) < 5 * float(error.detach())
    slopes = [torch.autograd.grad(value.mean(), free, retain_graph=True)[0] for value in (each, expected)]
    torch.testing.assert_close(*slopes, atol=0.02, rtol=0)


@pytest.mark.parametrize("at", TEMPERATURES)
def test_samples_have_the_law_of_their_temperature(logits, at):
    """One of uniforms evenly spaced falls to a token for every part of its probability."""
    z_p, count = logits[0][:1], 100_000
    noise = ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[None]
    kept = draw(noise, z_p, at, TEMPERATURES)
    share = torch.bincount(kept.token_NK[0], minlength=9) / count
    torch.testing.assert_close(share, (z_p[0] / at).softmax(-1), rtol=0, atol=2 / count, check_dtype=False)
    torch.testing.assert_close(kept.logit_NK, z_p.gather(-1, kept.token_NK))


def test_samples_serve_no_temperature_in_between(logits):
    z_p, z_q = logits
    kept = draw(torch.rand(4, 3, dtype=torch.float64), z_p, 1.0, TEMPERATURES)
    with pytest.raises(UserError, match="must be one of those of the cached teacher"):
        kept.laws(torch.full((4,), 0.75, dtype=torch.float64), z_q.log_softmax(-1))
