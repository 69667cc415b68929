import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tempspec.core.sampling import inverse_cdf, log_law, one_hot_log, truncate


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(4, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("k", [0, 1, 4, 50])
@pytest.mark.parametrize("p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("m", [0.0, 0.2])
def test_the_law_equals_that_of_transformers_logits_processors(logits, temperature, k, p, m):
    rows = logits.flatten(0, 1)
    expected = TemperatureLogitsWarper(temperature)(None, rows)
    expected = TopKLogitsWarper(k)(None, expected) if k > 0 else expected
    expected = TopPLogitsWarper(p)(None, expected) if p < 1 else expected
    expected = MinPLogitsWarper(m)(None, expected) if m > 0 else expected
    law = log_law(
        logits,
        torch.full((4,), temperature),
        top_k_B=torch.full((4,), k),
        top_p_B=torch.full((4,), p),
        min_p_B=torch.full((4,), m),
    )
    torch.testing.assert_close(law.flatten(0, 1).exp(), expected.softmax(-1), atol=1e-7, rtol=1e-6)


def test_each_row_has_its_own_temperature_and_truncation(logits):
    temperature, k = torch.tensor([0.0, 0.5, 1.0, 2.0]), torch.tensor([0, 2, 3, 0])
    together = log_law(logits, temperature, top_k_B=k)
    for row in range(4):
        alone = log_law(logits[row : row + 1], temperature[row : row + 1], top_k_B=k[row : row + 1])
        assert torch.equal(together[row], alone[0])


def test_neutral_truncation_changes_nothing(logits):
    logp = logits.log_softmax(-1)
    same = truncate(logp, top_k_B=torch.zeros(4).long(), top_p_B=torch.ones(4), min_p_B=torch.zeros(4))
    torch.testing.assert_close(same, logp)


def by_sorting(logp, k, p):
    """Top-k, then top-p, of one row of a large vocabulary, by sorting all of it."""
    ordered = logp.sort(descending=True, stable=True)
    logp = logp.masked_fill(logp < ordered.values[k - 1], -torch.inf).log_softmax(-1) if k else logp
    ordered = logp.sort(descending=True, stable=True)
    before = ordered.values.exp().cumsum(-1) - ordered.values.exp()
    drop = torch.zeros_like(logp, dtype=torch.bool).scatter(0, ordered.indices, (before >= p) & (p < 1))
    return logp.masked_fill(drop, -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("sharpness", [0.0, 0.01, 1.0, 4.0])  # 0: all tokens are equal, and the first ones stay
@pytest.mark.parametrize(("k", "p"), [(7, 1.0), (0, 0.5), (2000, 0.9), (0, 0.999), (3000, 1.0)])
def test_a_large_vocabulary_is_cut_as_if_it_were_sorted(sharpness, k, p):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(3, 2, 6000, generator=generator) * sharpness).mul(8).round().div(8)  # with ties
    limits = {"top_k_B": torch.tensor([k, 0, k]), "top_p_B": torch.tensor([p, p, 1.0])}
    law = log_law(logits, torch.ones(3), **limits)
    assert torch.equal(law, log_law(logits, torch.ones(3), most_k=max(k, 1), **limits))
    for row, (row_k, row_p) in enumerate([(k, p), (0, p), (k, 1.0)]):
        for position in range(2):
            expected = by_sorting(logits[row, position].log_softmax(-1), row_k, torch.tensor(row_p))
            assert torch.equal(law[row, position].isinf(), expected.isinf())
            torch.testing.assert_close(law[row, position].exp(), expected.exp())


def test_temperature_zero_is_the_limit_of_small_temperatures(logits):
    zero = log_law(logits, torch.zeros(4)).exp()
    small = log_law(logits, torch.full((4,), 1e-3, dtype=torch.float64)).exp()
    torch.testing.assert_close(zero, small)


def test_argmax_ties_go_to_the_lowest_id():
    law = log_law(torch.tensor([[[1.0, 3.0, 3.0]]]), torch.zeros(1))
    assert torch.equal(law, one_hot_log(torch.tensor([[1]]), 3))


def test_inverse_cdf_hits_each_token_for_its_share():
    weight = torch.tensor([0.0, 2.0, 0.0, 1.0, 1.0, 0.0])
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = inverse_cdf(weight.expand(1000, 6), grid)
    assert torch.bincount(tokens, minlength=6).tolist() == [0, 500, 0, 250, 250, 0]


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_inverse_cdf_never_returns_a_token_without_weight(u):
    weight = torch.tensor([[0.0, 0.1, 0.7, 0.0]]) * torch.tensor([[1.0], [1e-30], [1e30]])
    assert set(inverse_cdf(weight, torch.full((3,), u, dtype=torch.float64)).tolist()) <= {1, 2}


@pytest.mark.parametrize("vocabulary", [1 << 18, (1 << 18) + 77])
def test_inverse_cdf_of_many_tokens_is_by_one_cumulative_sum(vocabulary):
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(4, vocabulary, generator=generator, dtype=torch.float64) ** 8
    weight[:, ::3] = 0.0
    uniform = torch.tensor([0.0, 0.3, 0.9, 1 - 2.0**-53], dtype=torch.float64)
    cumulative = weight.cumsum(-1)
    expected = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:] * (1 - 1e-12), right=True)
    assert inverse_cdf(weight, uniform).tolist() == expected.squeeze(-1).tolist()


def test_few_tokens_are_drawn_alike_alone_and_in_any_batch():
    weight = torch.rand(20_000, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cumulative = weight.cumsum(-1)
    uniform = (cumulative[:, 3] / cumulative[:, -1]).clamp(max=1 - 2.0**-53)  # where the last digit decides
    alone = torch.cat([inverse_cdf(*part) for part in zip(weight.split(100), uniform.split(100), strict=True)])
    assert torch.equal(inverse_cdf(weight, uniform), alone)
