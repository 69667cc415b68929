import functools
import math

import pytest
import torch

from tempspec.core import divergences as core
from tempspec.core.acceptance import overlap

INF = math.inf
FUNCTIONS = {
    "forward_kl": core.forward_kl,
    "reverse_kl": core.reverse_kl,
    "jensen_shannon": core.jensen_shannon,
    "jensen_shannon_0.2": functools.partial(core.jensen_shannon, beta=0.2),
    "skew_kl": core.skew_kl,
    "skew_reverse_kl": core.skew_reverse_kl,
    "total_variation": core.total_variation,
    "negative_log_acceptance": core.negative_log_acceptance,
    "lk_hybrid": core.lk_hybrid,
    "normalised_total_variation": core.normalised_total_variation,
    "alpha_beta": core.alpha_beta,
    "alpha_beta_2": functools.partial(core.alpha_beta, alpha=1.5, beta=0.5),
    "adaptive_kl": core.adaptive_kl,
    "interpolated_kl": functools.partial(core.interpolated_kl, share=0.4),
    "logit_difference": core.logit_difference,
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def adaptive_reference(p, q):
    order = p.argsort(-1, descending=True)
    sorted_p = p.gather(-1, order)
    head = torch.zeros_like(p).scatter(-1, order, ((sorted_p.cumsum(-1) - sorted_p) < 0.5).to(p))
    gap = (p - q).abs()
    share = (gap * head).sum(-1) / gap.sum(-1)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def pairwise_difference(p, q):
    gap = q.log() - p.log()
    squares = (gap[..., :, None] - gap[..., None, :]) ** 2
    return (p[..., :, None] * p[..., None, :] * squares).sum((-1, -2)) / 2


def rewarded(p, q):
    reward = (p > q).to(p)
    mean = (q * reward).sum(-1)
    deviation = (q * (reward - mean[..., None]) ** 2).sum(-1).sqrt()
    return (p - q).abs().sum(-1) / 2 / deviation.clamp(min=1e-2)


def alpha_beta_reference(p, q, a=0.2, b=0.7):
    total = a + b
    return -(p**a * q**b - a / total * p**total - b / total * q**total).sum(-1) / (a * b)


# Straight from the papers, in probability space: what the log-space functions must equal where nothing is 0.
REFERENCES = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jensen_shannon": lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2,
    "jensen_shannon_0.2": lambda p, q: 0.2 * kl(p, 0.2 * p + 0.8 * q) + 0.8 * kl(q, 0.2 * p + 0.8 * q),
    "skew_kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skew_reverse_kl": lambda p, q: kl(q, 0.9 * p + 0.1 * q),
    "total_variation": lambda p, q: (p - q).abs().sum(-1) / 2,
    "negative_log_acceptance": lambda p, q: -torch.minimum(p, q).sum(-1).log(),
    "lk_hybrid": lambda p, q: (
        (lam := torch.exp(-3 * torch.minimum(p, q).sum(-1))) * kl(p, q) + (1 - lam) * (p - q).abs().sum(-1) / 2
    ),
    "normalised_total_variation": rewarded,
    "alpha_beta": alpha_beta_reference,
    "alpha_beta_2": functools.partial(alpha_beta_reference, a=1.5, b=0.5),
    "adaptive_kl": adaptive_reference,
    "interpolated_kl": lambda p, q: kl((r := p**0.4 * q**0.6) / r.sum(-1, keepdim=True), q),
    "logit_difference": pairwise_difference,
}


def log_laws(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, *shape, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1).to(dtype))


def gradient(function, logp, logits):
    logits = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(function(logp, logits.log_softmax(-1)).sum(), logits)[0]


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 300), (2, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_its_formula(name, shape):
    logp, logq = log_laws(*shape)
    got = FUNCTIONS[name](logp, logq)
    assert got.shape == shape[:-1]
    torch.testing.assert_close(got, REFERENCES[name](logp.exp(), logq.exp()))


@pytest.mark.parametrize(
    ("name", "p", "q", "expected"),
    [
        ("forward_kl", [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], math.log(2)),
        ("forward_kl", [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], INF),
        ("reverse_kl", [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], INF),
        ("reverse_kl", [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], math.log(2)),
        ("jensen_shannon", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], math.log(2)),
        ("jensen_shannon_0.2", [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], -0.2 * math.log(0.2) - 0.8 * math.log(0.8)),
        ("skew_kl", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], -math.log(0.1)),
        ("skew_reverse_kl", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], -math.log(0.1)),
        ("total_variation", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], 1.0),
        ("negative_log_acceptance", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], INF),
        ("negative_log_acceptance", [1.0, 0.0, 0.0], [0.25, 0.75, 0.0], math.log(4)),
        ("lk_hybrid", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], INF),
        ("normalised_total_variation", [0.5, 0.5, 0.0], [0.0, 0.5, 0.5], 0.5 / 0.01),
        ("alpha_beta", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], 1 / (0.2 * 0.7)),
        ("adaptive_kl", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], INF),
        ("interpolated_kl", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], INF),
        ("interpolated_kl", [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], 0.0),
        ("logit_difference", [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], INF),
        ("logit_difference", [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], 0.0),
    ],
)
def test_laws_with_zeros(name, p, q, expected):
    logp, logq = torch.tensor(p).log(), torch.tensor(q).log()
    assert FUNCTIONS[name](logp, logq).item() == pytest.approx(expected, rel=1e-6)
    assert gradient(FUNCTIONS[name], logp, logq).isfinite().all()


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_zero_with_zero_gradient_where_the_laws_agree(function, dtype):
    logits = torch.tensor([[1.0, 2.0, -INF, 0.5], [0.0, -INF, -INF, -INF], [0.0, 0.0, 0.0, 0.0]], dtype=dtype)
    # In bfloat16 the rounded laws sum to 1 within 2^-8 only, and the logsumexp of the acceptance sees that.
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    assert function(logits.log_softmax(-1), logits.log_softmax(-1)).abs().max() <= tolerance
    assert gradient(function, logits.log_softmax(-1), logits).abs().max() <= tolerance


@every_function
def test_temperature_towards_zero_keeps_values_and_gradients(function):
    generator = torch.Generator().manual_seed(1)
    zp, zq = torch.randn(2, 4, 9, generator=generator)
    for temperature in (1e-1, 1e-2, 1e-3, 1e-4):
        logp = (zp / temperature).log_softmax(-1)
        assert function(logp, (zq / temperature).log_softmax(-1)).isfinite().all()
        assert gradient(function, logp, zq / temperature).isfinite().all()


def test_a_rejected_position_does_not_silence_its_neighbours():
    logp = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]).log()
    logits = torch.tensor([[0.0, -INF, 0.0], [0.0, 0.0, 0.0]])
    both, alone = gradient(core.forward_kl, logp, logits), gradient(core.forward_kl, logp[1:], logits[1:])
    torch.testing.assert_close(both[1:], alone)


def test_an_infinite_reverse_kl_pushes_the_draft_back():
    logp, logits = torch.tensor([0.5, 0.5, 0.0]).log(), torch.zeros(3)
    slope = gradient(core.reverse_kl, logp, logits)
    assert slope[2] > 0 > slope[0] == slope[1]


def test_overlap_below_the_smallest_float_still_teaches():
    logp = torch.tensor([0.0, -500.0])
    logits = torch.tensor([-500.0, 0.0])
    assert core.negative_log_acceptance(logp, logits.log_softmax(-1)).item() == pytest.approx(500 - math.log(2))
    # q must grow at token 0 and shrink at token 1; the overlap is even there: -(1/2 - q_0) and -(0 - q_1).
    torch.testing.assert_close(gradient(core.negative_log_acceptance, logp, logits), torch.tensor([-0.5, 1.0 - 0.5]))


@every_function
def test_nan_is_not_hidden(function):
    logp, logq = log_laws(3, 4)
    assert function(logp * torch.nan, logq).isnan().all()
    assert function(logp, logq * torch.nan).isnan().all()


@every_function
def test_half_precision_is_widened(function):
    logp, logq = log_laws(3, 50, dtype=torch.bfloat16)
    assert function(logp, logq).dtype == torch.float32
    torch.testing.assert_close(function(logp, logq), function(logp.float(), logq.float()))


@every_function
def test_precisions_mix(function):
    logp, logq = log_laws(3, 50)
    torch.testing.assert_close(function(logp, logq.float()), function(logp, logq), atol=1e-5, rtol=1e-5)


def test_acceptance_is_one_minus_total_variation():
    logp, logq = log_laws(100, 20)
    torch.testing.assert_close(overlap(logp, logq), 1 - core.total_variation(logp, logq))


def test_jensen_shannon_is_symmetric_at_one_half():
    logp, logq = log_laws(100, 20)
    torch.testing.assert_close(core.jensen_shannon(logp, logq), core.jensen_shannon(logq, logp))


def test_jensen_shannon_and_skew_tend_to_forward_kl():
    logp, logq = log_laws(10, 5)
    expected = core.forward_kl(logp, logq)
    torch.testing.assert_close(core.skew_kl(logp, logq, alpha=1e-9), expected)
    torch.testing.assert_close(core.jensen_shannon(logp, logq, beta=1e-9) / 1e-9, expected, rtol=1e-4, atol=1e-6)


def test_pinsker():
    logp, logq = log_laws(1000, 5)
    assert (core.total_variation(logp, logq) <= (core.forward_kl(logp, logq) / 2).sqrt()).all()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_bounds_of_the_mixtures(beta):
    logp, logq = log_laws(1000, 5)
    logp, logq = (logp * 20).log_softmax(-1), (logq * 20).log_softmax(-1)
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert core.jensen_shannon(logp, logq, beta=beta).max() <= bound + 1e-12
    assert core.skew_kl(logp, logq, alpha=beta).max() <= -math.log(beta) + 1e-12
    assert core.skew_reverse_kl(logp, logq, alpha=beta).max() <= -math.log(beta) + 1e-12


def test_negative_log_acceptance_has_tvs_gradient_over_alpha():
    logp, logq = log_laws(10, 20)
    expected = gradient(core.total_variation, logp, logq) / overlap(logp, logq)[:, None]
    torch.testing.assert_close(gradient(core.negative_log_acceptance, logp, logq), expected)


def test_gradient_of_forward_kl_is_q_minus_p():
    logp, logq = log_laws(10, 20)
    torch.testing.assert_close(gradient(core.forward_kl, logp, logq), logq.exp() - logp.exp())


def test_lk_hybrid_holds_its_weight_constant():
    logp, logq = log_laws(10, 20)
    weight = torch.exp(-3 * overlap(logp, logq))[:, None]
    kl_slope, distance_slope = gradient(core.forward_kl, logp, logq), gradient(core.total_variation, logp, logq)
    torch.testing.assert_close(gradient(core.lk_hybrid, logp, logq), weight * kl_slope + (1 - weight) * distance_slope)


def test_lk_hybrid_without_eta_is_forward_kl():
    logp, logq = log_laws(10, 20)
    torch.testing.assert_close(core.lk_hybrid(logp, logq, eta=0.0), core.forward_kl(logp, logq))


def test_normalised_total_variation_is_a_policy_gradient():
    logp, logq = log_laws(10, 20)
    reward = (logp > logq).double()
    q = logq.exp()
    mean = (q * reward).sum(-1, keepdim=True)
    advantage = (reward - mean) / (mean * (1 - mean)).sqrt().clamp(min=1e-2)

    def surrogate(_, logq):
        return -(q * advantage * logq).sum(-1)

    expected = gradient(surrogate, logp, logq)
    torch.testing.assert_close(gradient(core.normalised_total_variation, logp, logq), expected)


def test_alpha_beta_tends_to_both_kls():
    logp, logq = log_laws(10, 5)
    forward, reverse = (core.alpha_beta(logp, logq, alpha=alpha, beta=beta) for alpha, beta in ((1, 1e-7), (1e-7, 1)))
    torch.testing.assert_close(forward, core.forward_kl(logp, logq), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reverse, core.reverse_kl(logp, logq), rtol=1e-5, atol=1e-5)


def test_ties_at_the_edge_of_the_head_count_as_one():
    logp = torch.tensor([0.25, 0.25, 0.25, 0.25]).log()
    logq = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    torch.testing.assert_close(core.adaptive_kl(logp, logq), core.forward_kl(logp, logq))
    torch.testing.assert_close(core.top_k_cross_entropy(logp, logq, k=2), -0.25 * logq.sum())


def test_interpolation_holds_its_teacher_constant():
    logp, logq = log_laws(10, 20)
    between = (0.3 * logp + 0.7 * logq).log_softmax(-1)
    got = gradient(functools.partial(core.interpolated_kl, share=0.3), logp, logq)
    torch.testing.assert_close(got, logq.exp() - between.exp())


def test_top_k_over_everything_is_forward_kl_and_an_entropy():
    logp, logq = log_laws(10, 20)
    expected = core.forward_kl(logp, logq) + core.entropy(logp)
    torch.testing.assert_close(core.top_k_cross_entropy(logp, logq, k=99), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cross_entropies_at_zeros(dtype):
    logits = torch.tensor([[0.0, -INF, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    logp, label = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]).log().to(dtype), torch.tensor([1, 0])
    for function in (core.top_k_cross_entropy, lambda _, logq: core.label_cross_entropy(logq, label)):
        value = function(logp, logits.log_softmax(-1))
        assert value.dtype == torch.float32
        assert value[0] == INF
        assert value[1] == pytest.approx(math.log(3), rel=1e-2)
        assert gradient(function, logp, logits).isfinite().all()
        assert function(logp, logits.log_softmax(-1) * torch.nan).isnan().all()


def test_a_shift_of_the_draft_changes_no_logit_difference():
    logp, logq = log_laws(10, 20)
    torch.testing.assert_close(core.logit_difference(logp, logq + 3.0), core.logit_difference(logp, logq))


def test_entropy_of_known_laws():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -INF, -INF], [0.0, -INF, -INF, -INF]])
    expected = torch.tensor([math.log(4), math.log(2), 0.0])
    torch.testing.assert_close(core.entropy(logits.log_softmax(-1)), expected)
    logits.requires_grad_()
    core.entropy(logits.log_softmax(-1)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, 4))
