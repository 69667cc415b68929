import pytest
import torch

from tempspec.core import verification
from tempspec.core.noise import gumbel
from tempspec.core.sampling import one_hot_log
from tempspec.core.verification import (
    acceptance_probability,
    block_accepted,
    block_survival,
    first_rejection,
    last_success,
    log_ratio,
    next_weight,
    of_token,
    probabilities,
    residual,
    typical_log_threshold,
    typical_outcome,
)
from tests.controls import block_coins

INF = torch.inf


def laws(*shape, seed=0, spread=2.0, zeros=False, dtype=torch.float64):
    """Random log-laws, with about half of the tokens impossible if asked."""
    logits = spread * gumbel(seed, torch.arange(torch.tensor(shape).prod())).reshape(shape)
    if zeros:
        logits = logits.masked_fill(logits < logits.median(-1, keepdim=True).values, -INF)
    return logits.log_softmax(-1).to(dtype)


@pytest.mark.parametrize("zeros", [False, True])
def test_acceptance_and_residual_make_the_target(zeros):
    logp, logq = laws(50, 6, seed=1, zeros=zeros), laws(50, 6, seed=2, zeros=zeros)
    accepted = torch.where(logq > -INF, logq.exp() * acceptance_probability(logp, logq), 0.0)
    weight = residual(logp, logq)
    law = accepted + (1 - accepted.sum(-1, keepdim=True)) * weight / weight.sum(-1, keepdim=True)
    torch.testing.assert_close(law, logp.exp(), rtol=0, atol=1e-14)


def test_ratio_at_the_edges_of_both_laws():
    logp, logq = torch.tensor([-INF, -INF, 0.0, -1.0, -2.0]), torch.tensor([-INF, -1.0, -INF, -1.0, -1.0])
    assert log_ratio(logp, logq)[:2].tolist() == [-INF, -INF]
    assert acceptance_probability(logp, logq).tolist() == pytest.approx([0, 0, 1, 1, 0.36787944])


def test_residual_of_equal_laws_is_the_target():
    logp = laws(4, 5)
    assert torch.equal(residual(logp, logp), probabilities(logp))


def test_residual_of_one_hot_draft_is_the_target_without_it():
    logp = laws(1, 4)
    expected = logp.exp().index_fill(1, torch.tensor([2]), 0.0)
    torch.testing.assert_close(residual(logp, one_hot_log(torch.tensor([2]), 4)), expected)


def test_next_weight_reads_the_position_behind_the_accepted():
    logp, logq = laws(3, 4, 5, seed=1), laws(3, 3, 5, seed=2)
    weight = next_weight(logp, logq, torch.tensor([0, 2, 3]), torch.tensor([3, 2, 3]))
    assert torch.equal(weight[0], residual(logp[:1, 0], logq[:1, 0])[0])
    assert torch.equal(weight[1], probabilities(logp[1, 2]))
    assert torch.equal(weight[2], probabilities(logp[2, 3]))


def test_counts_equal_a_loop():
    accept = torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    length = torch.arange(200) % 6
    for row, (coins, drafted) in enumerate(zip(accept.tolist(), length.tolist(), strict=True)):
        coins = coins[:drafted]
        assert first_rejection(accept, length)[row] == next((i for i, c in enumerate(coins) if not c), drafted)
        assert last_success(accept, length)[row] == max((i + 1 for i, c in enumerate(coins) if c), default=0)


def test_nothing_drafted_counts_nothing():
    accept, length = torch.zeros(3, 0, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    assert first_rejection(accept, length).tolist() == last_success(accept, length).tolist() == [0, 0, 0]
    assert block_survival(torch.zeros(3, 0)).tolist() == [[1.0]] * 3
    none = block_accepted(laws(3, 1, 4), laws(3, 1, 4)[:, :0], torch.ones(3, 1).double(), length, lambda h: h > 0.5)
    assert none.tolist() == [0, 0, 0]


def test_survival_equals_its_recursion():
    ratio = 3 * torch.randn(100, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratio[::7, 2] = -INF
    survival = block_survival(ratio)
    for position in range(6):
        expected = (survival[:, position] * ratio[:, position].exp()).clamp(max=1)
        torch.testing.assert_close(survival[:, position + 1], expected, rtol=1e-12, atol=0)


class Tosses:
    """The same u at every call, and how much was asked."""

    def __init__(self, rows, drafted):
        self.u = torch.rand(rows, drafted, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.asked = []

    def __call__(self, chance):
        self.asked.append(chance.clone())
        return self.u < chance


@pytest.mark.parametrize("zeros", [False, True])
def test_block_decides_what_the_formula_says(zeros):
    rows, longest = 400, 4
    logp, logq = laws(rows, longest + 1, 6, seed=1, zeros=zeros), laws(rows, longest, 6, seed=2, zeros=zeros)
    logq = torch.logaddexp(logq, logp[:, :-1] + 1.0).log_softmax(-1)
    token, length = logq[..., 1:].argmax(-1) + 1, torch.arange(rows) % (longest + 1)
    survival = block_survival(log_ratio(of_token(logp, token), of_token(logq, token)))
    plain, toss = block_coins(logp, logq, survival, length), Tosses(rows, longest)
    accepted = block_accepted(logp, logq, survival, length, toss)
    assert torch.equal(accepted, last_success(toss.u < plain, length))
    assert set(accepted.tolist()) == {0, 1, 2, 3, 4}
    looked = toss.asked[-1] != survival[:, 1:]  # where a law was looked at
    torch.testing.assert_close(toss.asked[-1][looked], plain[looked], rtol=1e-12, atol=1e-14)
    assert 0 < looked.sum() < looked.numel() / 4
    assert (plain <= survival[:, 1:] + 1e-12).all()


def test_block_accepts_equal_laws_whole():
    logp = laws(2, 3, 4)
    accepted = block_accepted(logp, logp[:, :2], torch.ones(2, 3).double(), torch.full((2,), 2), Tosses(2, 2))
    assert accepted.tolist() == [2, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_hot_laws_give_no_nan(dtype):
    token = torch.tensor([[0, 1, 2], [1, 1, 1]])
    logp, logq = one_hot_log(torch.tensor([[0, 1, 1, 0]] * 2), 4, dtype), one_hot_log(token, 4, dtype)
    length = torch.tensor([3, 2])
    survival = block_survival(log_ratio(of_token(logp, token), of_token(logq, token)))
    assert survival.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert block_accepted(logp, logq, survival, length, Tosses(2, 3)).tolist() == [2, 0]
    for accepted in range(3):
        weight = next_weight(logp, logq, torch.full((2,), accepted), length, survival[:, accepted])
        assert weight.isfinite().all()
        assert (weight.sum(-1) > 0).all()
    p = probabilities(logp)
    assert typical_log_threshold(logp.to(p), p, 0.09, 0.3).exp().tolist() == [[pytest.approx(0.09)] * 4] * 2


def test_float32_is_close_to_float64_on_a_large_vocabulary():
    logp, logq = laws(4, 4, 20_000, seed=1, spread=1.0), laws(4, 3, 20_000, seed=2, spread=1.0)
    token = logq.argmax(-1)
    survival = block_survival(log_ratio(of_token(logp, token), of_token(logq, token)))
    exact, rounded, full = Tosses(4, 3), Tosses(4, 3), torch.full((4,), 3)
    exact.u = rounded.u = torch.zeros_like(exact.u)
    exact.u[:, 2] = 1.0  # the last coin fails
    accepted = block_accepted(logp, logq, survival, full, exact)
    assert torch.equal(block_accepted(logp.float(), logq.float(), survival, full, rounded), accepted)
    torch.testing.assert_close(rounded.asked[-1], exact.asked[-1], rtol=1e-5, atol=1e-6)


def test_typical_threshold_follows_the_entropy():
    uniform = torch.zeros(1, 1, 10).log_softmax(-1)
    for epsilon, expected in ((0.09, 0.03), (0.02, 0.02)):
        threshold = typical_log_threshold(uniform, uniform.exp(), epsilon, delta=0.3)
        assert threshold.exp().item() == pytest.approx(expected)


def test_probabilities_are_the_exponential_of_a_law():
    logp = laws(4, 5).masked_fill(torch.eye(4, 5, dtype=torch.bool), -INF).log_softmax(-1)
    torch.testing.assert_close(probabilities(logp), logp.exp(), rtol=1e-15, atol=1e-16)
    assert probabilities(one_hot_log(torch.tensor([2]), 4)).tolist() == [[0.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("zeros", [False, True])
def test_typical_tokens_are_counted_to_the_first_that_is_not(zeros):
    logp = laws(60, 5, 6, zeros=zeros)
    token, length = torch.arange(240).reshape(60, 4) % 6, torch.arange(60) % 5
    threshold = typical_log_threshold(logp[:, :-1], probabilities(logp[:, :-1]), 0.3, 0.9)
    before = logp.clone()
    accepted, weight = typical_outcome(logp, token, length, 0.3, 0.9)
    assert torch.equal(accepted, first_rejection(of_token(logp, token) > threshold, length))
    torch.testing.assert_close(weight, logp[torch.arange(60), accepted].exp())
    assert torch.equal(logp, before)
    assert set(accepted.tolist()) >= {0, 1, 2}


@pytest.mark.parametrize("zeros", [False, True])
def test_a_device_that_works_on_all_rows_decides_the_same(zeros, monkeypatch):
    logp, logq = laws(64, 5, 6, seed=1, zeros=zeros), laws(64, 4, 6, seed=2, zeros=zeros)
    generator = torch.Generator().manual_seed(3)
    token = torch.multinomial(logq.exp().flatten(0, 1), 1, generator=generator).view(64, 4)
    length, uniform = torch.arange(64) % 5, torch.rand(64, 4, dtype=torch.float64, generator=generator)
    survival = block_survival(log_ratio(of_token(logp, token), of_token(logq, token)))

    def decided():
        accepted = block_accepted(logp, logq, survival, length, lambda chance: uniform < chance)
        left = survival.gather(1, accepted[:, None]).squeeze(1)
        typical, behind = typical_outcome(logp, token, length, 0.3, 0.5)
        return accepted, next_weight(logp, logq, accepted, length, left), typical, behind

    few = decided()
    monkeypatch.setattr(verification, "rows_of", lambda wanted: torch.arange(len(wanted)))
    assert len({*few[0].tolist()}) > 2
    for one, other in zip(few, decided(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-15)
