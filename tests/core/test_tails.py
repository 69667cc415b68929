import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tempspec.core.sparse import top_k
from tempspec.core.tails import bounds, power_law, told

V = 200
TEMPERATURES = (0.5, 0.8, 1.0, 1.5, 3.0)


def laws(seed, sharpness, rows=8):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(rows, V, generator=generator, dtype=torch.float64)).log_softmax(-1)


def split(logp_NV, kept):
    """The largest, and the exact log-sum of the others at each temperature."""
    sparse = top_k(logp_NV, kept, TEMPERATURES)
    return sparse.token_NK, sparse.logit_NK, sparse.logsum_NH


@given(seed=st.integers(0, 9), sharpness=st.sampled_from([0.0, 0.3, 1.0, 3.0]), kept=st.sampled_from([1, 5, 64, 199]))
def test_the_tail_lies_between_its_bounds(seed, sharpness, kept):
    _, logp_NK, true_NH = split(laws(seed, sharpness), kept)
    taken_NH = power_law(logp_NK, V, TEMPERATURES)
    for place, temperature in enumerate(TEMPERATURES):
        low_N, high_N = bounds(logp_NK, V, temperature)
        for sum_N in (true_NH[:, place], taken_NH[:, place]):
            assert (sum_N >= low_N - 1e-6).all()
            assert (sum_N <= high_N + 1e-6).all()


@given(seed=st.integers(0, 9), kept=st.sampled_from([1, 5, 64]))
def test_the_tail_is_exact_at_temperature_1(seed, kept):
    _, logp_NK, true_NH = split(laws(seed, 1.0), kept)
    torch.testing.assert_close(power_law(logp_NK, V, [1.0])[:, 0], true_NH[:, 2], atol=1e-9, rtol=0)


@pytest.mark.parametrize("slope", [0.0, 0.6, 1.0, 1.7])
def test_the_tail_of_a_power_law_is_found(slope):
    logp_NV = (-slope * torch.arange(1, V + 1, dtype=torch.float64).log()).log_softmax(-1)[None]
    _, logp_NK, true_NH = split(logp_NV, 10)
    torch.testing.assert_close(power_law(logp_NK, V, TEMPERATURES), true_NH, atol=0.02, rtol=0)


def test_another_mass_or_vocabulary_gives_another_tail():
    """What the law above is found from is looked at: without it the figure is wrong."""
    logp_NV = (-torch.arange(1, V + 1, dtype=torch.float64).log()).log_softmax(-1)[None]
    _, logp_NK, true_NH = split(logp_NV, 10)
    for wrong in (power_law(logp_NK, 2 * V, TEMPERATURES), power_law(logp_NK - 0.1, V, TEMPERATURES)):
        assert (wrong - true_NH).abs().max() > 0.05


def test_all_tokens_told_leave_no_tail():
    token_NK, logp_NK, _ = split(laws(0, 1.0), V)
    kept = told(token_NK, logp_NK, V, (0.5, 2.0))
    assert kept.logsum_NH.isneginf().all()
    logp_NC, _ = kept.laws(torch.full((8,), 2.0, dtype=torch.float64), laws(1, 1.0))
    torch.testing.assert_close(logp_NC, (logp_NK / 2).log_softmax(-1))


def test_a_law_without_any_rest_is_served():
    """Rounded log-probabilities add up to more than 1: what is left is next to nothing, never NaN."""
    logp_NK = torch.tensor([[1.0 + 1e-6, 1e-9]]).double().log()
    assert torch.isfinite(power_law(logp_NK, V, TEMPERATURES)).all()
    assert (power_law(logp_NK, V, [1.0]) < -20).all()
