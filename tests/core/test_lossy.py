import pytest
import torch

from tempspec.core.lossy import budgeted, cascaded, distance, lenient, mixture
from tempspec.core.noise import gumbel
from tempspec.core.sampling import one_hot_log


def laws(seed, *, zeros=False, vocabulary=6):
    logits = 1.5 * gumbel(seed, torch.arange(200)[:, None], torch.arange(vocabulary))
    if zeros:
        logits = logits.masked_fill(logits < logits.median(-1, keepdim=True).values, -torch.inf)
    return logits.log_softmax(-1)


def alike(logp, logq):
    return torch.minimum(logp.exp(), logq.exp()).sum(-1)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    "substitute",
    [lambda p, q: lenient(p, q, 0.4), lambda p, q: mixture(p, q, 0.3), lambda p, q: budgeted(p, q, 0.1),
     lambda p, q: cascaded(p, q, 0.5)],
    ids=["lenient", "mixture", "budgeted", "cascaded"],
)  # fmt: skip
def test_a_substitute_is_a_law_nearer_to_the_draft(substitute, zeros):
    logp, logq = laws(1, zeros=zeros), laws(2, zeros=zeros)
    logpi = substitute(logp, logq)
    torch.testing.assert_close(logpi.exp().sum(-1), torch.ones(200).double())
    assert (alike(logpi, logq) >= alike(logp, logq) - 1e-12).all()


def test_lenience_is_bounded_by_its_promise():
    logp, logq = laws(1), laws(2)
    assert (lenient(logp, logq, 0.4).exp() <= logp.exp() / 0.4 + 1e-12).all()
    torch.testing.assert_close(lenient(logp, logq, 1.0).exp(), logp.exp())


def test_mixture_has_its_closed_forms():
    logp, logq = laws(1), laws(2)
    apart, total = distance(mixture(logp, logq, 0.3), logp)[0], distance(logq, logp)[0]
    torch.testing.assert_close(apart, 0.7 * total)
    torch.testing.assert_close(alike(mixture(logp, logq, 0.3), logq), 1 - 0.3 * total)


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.2, 10.0])
@pytest.mark.parametrize("zeros", [False, True])
def test_budget_is_kept_and_used_up(budget, zeros):
    logp, logq = laws(1, zeros=zeros), laws(2, zeros=zeros)
    logpi = budgeted(logp, logq, budget)
    spent, whole = distance(logpi, logp)[1], distance(logq, logp)[1]
    assert (spent <= budget + 1e-9).all()
    tight = whole.isfinite() & (whole > budget)
    torch.testing.assert_close(spent[tight], torch.full_like(spent[tight], budget), rtol=0, atol=1e-8)
    torch.testing.assert_close(logpi[whole <= budget].exp(), logq[whole <= budget].exp(), rtol=0, atol=1e-8)


def test_no_law_within_the_budget_accepts_more():
    """Against the best of many random laws and of all mixtures that keep the budget."""
    logp, logq = laws(1, vocabulary=3)[:20], laws(2, vocabulary=3)[:20]
    best = alike(budgeted(logp, logq, 0.05), logq)
    for seed in range(400):
        other = (0.3 * laws(10 + seed, vocabulary=3)[:20] + 0.7 * mixture(logp, logq, 0.5)).log_softmax(-1)
        fits = distance(other, logp)[1] <= 0.05
        assert (alike(other, logq) <= best + 1e-9)[fits].all()


def test_cascade_asks_the_target_where_it_is_surer():
    sure, unsure = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert torch.equal(cascaded(sure, unsure, 0.1), sure)
    assert torch.equal(cascaded(unsure, sure, 0.1), sure)


def test_distance_of_laws_that_leave_the_support_is_infinite():
    total, divergence = distance(one_hot_log(torch.tensor([0]), 2), one_hot_log(torch.tensor([1]), 2))
    assert (float(total), float(divergence)) == (1.0, float("inf"))
