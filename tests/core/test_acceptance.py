import pytest
import torch

from tempspec.core import acceptance
from tempspec.core.sampling import log_law

TARGET, DRAFT = [0.0, 0.5, 1.0, 1.5], [0.0, 0.7, 2.0]
GENERATOR = torch.Generator().manual_seed(0)
LOGITS_P, LOGITS_Q = torch.randn(13, 50, generator=GENERATOR), torch.randn(13, 50, generator=GENERATOR)


def naive_law(logits, temperature):
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    return (logits.double() / temperature).softmax(-1)


def naive_grid(logits_p, logits_q, combine):
    """`combine` of every pair of laws in float64, on the ids that both heads have."""
    common = min(logits_p.shape[-1], logits_q.shape[-1])
    laws_p = [naive_law(logits_p, temperature)[:, :common] for temperature in TARGET]
    laws_q = [naive_law(logits_q, temperature)[:, :common] for temperature in DRAFT]
    return torch.stack([torch.stack([combine(p, q).sum(-1) for q in laws_q], -1) for p in laws_p], 1)


@pytest.mark.parametrize("heads", [(50, 50), (50, 40), (40, 50)])
@pytest.mark.parametrize("elements", [1, 2000, 1 << 20])
def test_grids_equal_a_naive_reference(heads, elements, monkeypatch):
    monkeypatch.setattr(acceptance, "_CPU_ELEMENTS", elements)
    logits_p, logits_q = LOGITS_P[:, : heads[0]], LOGITS_Q[:, : heads[1]]
    for grid, combine in ((acceptance.acceptance_grid, torch.minimum), (acceptance.agreement_grid, torch.mul)):
        expected = naive_grid(logits_p, logits_q, combine)
        torch.testing.assert_close(grid(logits_p, logits_q, TARGET, DRAFT).double(), expected, rtol=0, atol=1e-6)
    argmax = acceptance.argmax_acceptance(logits_p, logits_q, TARGET).double()
    torch.testing.assert_close(argmax, naive_grid(logits_p, logits_q, torch.minimum)[..., 0], rtol=0, atol=1e-6)


def test_argmax_draft_is_the_target_law_at_its_token():
    expected = torch.stack(
        [naive_law(LOGITS_P, t).gather(-1, LOGITS_Q.argmax(-1, keepdim=True))[:, 0] for t in TARGET], 1
    )
    torch.testing.assert_close(acceptance.argmax_acceptance(LOGITS_P, LOGITS_Q, TARGET).double(), expected)


def test_acceptance_is_one_minus_total_variation():
    p, q = LOGITS_P.log_softmax(-1), LOGITS_Q.log_softmax(-1)
    torch.testing.assert_close(acceptance.overlap(p, q), 1 - (p.exp() - q.exp()).abs().sum(-1) / 2)


def test_equal_models_accept_all_on_the_diagonal():
    grid = acceptance.acceptance_grid(LOGITS_P, LOGITS_P, TARGET, TARGET)
    torch.testing.assert_close(grid.diagonal(dim1=1, dim2=2), torch.ones(13, 4))


def test_cold_laws_tend_to_the_greedy_one():
    cold = acceptance.acceptance_grid(LOGITS_P, LOGITS_Q, [1e-4], [1e-4, 1.0])
    torch.testing.assert_close(cold, acceptance.acceptance_grid(LOGITS_P, LOGITS_Q, [0.0], [0.0, 1.0]))


def test_grids_of_nothing_are_empty():
    assert acceptance.acceptance_grid(LOGITS_P[:0], LOGITS_Q[:0], TARGET, DRAFT).shape == (0, 4, 3)
    assert acceptance.entropy(LOGITS_P[:0], TARGET).shape == (0, 4)


def test_grids_take_half_precision_and_training_logits():
    logits_p, logits_q = LOGITS_P.bfloat16(), LOGITS_Q.bfloat16().requires_grad_()
    grid = acceptance.acceptance_grid(logits_p, logits_q, TARGET, DRAFT)
    assert grid.dtype == torch.float32
    assert not grid.requires_grad
    torch.testing.assert_close(grid.double(), naive_grid(logits_p, logits_q.detach(), torch.minimum), rtol=0, atol=1e-6)


def test_entropy_lies_between_the_one_hot_and_the_uniform_law():
    entropy = acceptance.entropy(LOGITS_P, [0.0, 1.0, 1e6])
    assert entropy[:, 0].tolist() == [0.0] * 13
    reference = torch.distributions.Categorical(logits=LOGITS_P).entropy()
    torch.testing.assert_close(entropy[:, 1], reference)
    torch.testing.assert_close(entropy[:, 2], torch.full((13,), 50.0).log())


@pytest.mark.parametrize("zeros", [False, True])
def test_gumbel_agreement_equals_the_double_sum(zeros):
    p, q = LOGITS_P[:, :6].double().softmax(-1), LOGITS_Q[:, :6].double().softmax(-1)
    if zeros:
        p, q = torch.where(p < 0.1, 0.0, p), torch.where(q < 0.1, 0.0, q)
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    ratios = torch.maximum(p[:, None] / p[..., None], q[:, None] / q[..., None]).nan_to_num(torch.inf)
    expected = (1 / ratios.sum(-1)).sum(-1)
    torch.testing.assert_close(acceptance.gumbel_agreement(p.log(), q.log()), expected)


def test_gumbel_agreement_of_case_a():
    p = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    q = torch.tensor([0.2, 0.4, 0.1, 0.3], dtype=torch.float64)
    assert acceptance.gumbel_agreement(p.log(), q.log()).item() == pytest.approx(0.618120, abs=5e-7)
    assert acceptance.gumbel_agreement(p.log(), p.log()).item() == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.65, 0.99])
@pytest.mark.parametrize("drafted", [0, 1, 4, 9])
def test_expected_counts_equal_the_geometric_sums(alpha, drafted):
    tokens = (1 - alpha ** (drafted + 1)) / (1 - alpha)
    assert acceptance.expected_tokens(alpha, drafted) == pytest.approx(tokens)
    assert acceptance.expected_accepted(alpha, drafted) == pytest.approx(tokens - 1)
    assert acceptance.speedup(alpha, drafted, cost=0.1) == pytest.approx(tokens / (0.1 * drafted + 1))


def test_certain_acceptance_has_no_division_by_zero():
    alpha = torch.tensor([0.5, 1.0])
    assert acceptance.expected_tokens(alpha, 3).tolist() == [1.875, 4.0]


@pytest.mark.parametrize(("alpha", "cost"), [(0.3, 0.2), (0.2, 0.3), (0.9, 0.89), (0.5, 0.51)])
def test_a_draft_helps_exactly_if_accepted_more_than_it_costs(alpha, cost):
    best = max(acceptance.speedup(alpha, drafted, cost) for drafted in range(1, 20))
    assert (best > 1) == (alpha > cost)


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 4, "top_p": 0.8}], ids=str)
def test_a_grid_of_cut_laws_is_the_overlap_of_decodings_laws(options):
    logits_p, logits_q = (torch.randn(5, 9, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    grid = acceptance.acceptance_grid(logits_p, logits_q, [0.0, 0.7], [0.5, 0.0, 2.0], acceptance.Truncation(**options))
    cut = {f"{name}_B": torch.full((5,), value) for name, value in options.items()}
    for a, target in enumerate((0.0, 0.7)):
        for d, draft in enumerate((0.5, 0.0, 2.0)):
            logp = log_law(logits_p[:, None], torch.full((5,), target), **cut)[:, 0]
            logq = log_law(logits_q[:, None], torch.full((5,), draft), **cut)[:, 0]
            torch.testing.assert_close(grid[:, a, d], acceptance.overlap(logp, logq))
    assert (grid != acceptance.acceptance_grid(logits_p, logits_q, [0.0, 0.7], [0.5, 0.0, 2.0])).any()
