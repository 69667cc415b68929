"""Noise that is made block by block is Gumbel noise, and an argmax that looks at few tokens is the argmax."""

import math

import pytest
import torch

from tempspec.core.acceptance import gumbel_agreement
from tempspec.core.gumbel import BLOCK, coupled_argmax, shared_gumbel
from tempspec.core.noise import fold

VOCABULARIES = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 20 * BLOCK]


def laws(rows, vocabulary, spread, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (spread * torch.randn(rows, vocabulary, generator=generator, dtype=dtype)).log_softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_argmax_of_few_is_the_argmax_of_all(vocabulary, spread, dtype):
    logp = laws(500, vocabulary, spread).to(dtype)
    key = fold(torch.arange(500), 7)
    assert torch.equal(coupled_argmax(logp, key), (logp + shared_gumbel(key, vocabulary)).argmax(-1))


@pytest.mark.parametrize("kept", [1, 3])
def test_tokens_without_probability_are_never_chosen(kept):
    logp = laws(2000, 3 * BLOCK + 7, 1.0).float()
    place = torch.stack([torch.randperm(logp.shape[1])[:kept] for _ in range(len(logp))])
    narrow = torch.full_like(logp, -torch.inf).scatter(1, place, logp.gather(1, place))
    key = torch.arange(2000)
    token = coupled_argmax(narrow, key)
    assert (token[:, None] == place).any(1).all()
    assert torch.equal(token, (narrow + shared_gumbel(key, logp.shape[1])).argmax(-1))


def test_any_leading_axes():
    logp, key = laws(6, 70, 1.0).view(2, 3, 70), fold(torch.arange(6)).view(2, 3)
    flat = coupled_argmax(logp.view(6, 70), key.view(6))
    assert torch.equal(coupled_argmax(logp, key), flat.view(2, 3))
    assert torch.equal(shared_gumbel(key, 70).view(6, 70), shared_gumbel(key.view(6), 70))


@pytest.mark.parametrize("token", [0, BLOCK - 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 2])
def test_every_token_has_the_law_of_gumbel(token):
    """Kolmogorov's distance, whose bound is crossed once in 10,000 times."""
    times = 20_000
    noise = shared_gumbel(fold(torch.arange(times), 1), 2 * BLOCK + 3)[:, token]
    level = torch.exp(-torch.exp(-noise)).sort().values
    step = torch.arange(times + 1, dtype=torch.float64) / times
    distance = max((step[1:] - level).max().item(), (level - step[:-1]).max().item())
    assert distance < 2.23 / math.sqrt(times)


def test_tokens_and_keys_are_independent():
    """Of one block, of two, and behind the last; and the waits for the first and the second."""
    noise = shared_gumbel(fold(torch.arange(50_000)), BLOCK + 3)
    level = torch.exp(-torch.exp(-noise))
    columns = level[:, [0, 1, BLOCK - 1, BLOCK, BLOCK + 1]].T
    columns = torch.cat([columns[:, :-1], columns[:1, 1:]])
    correlation = torch.corrcoef(columns) - torch.eye(len(columns))
    assert correlation.abs().max() < 4.5 / math.sqrt(columns.shape[1])
    first, second = noise[:, :BLOCK].topk(2).values.T
    times = torch.exp(-torch.stack([first, second]))
    waits = torch.stack([times[0] * BLOCK, (times[1] - times[0]) * (BLOCK - 1)])
    assert torch.allclose(waits.mean(1), torch.ones(2, dtype=torch.float64), atol=4.5 / math.sqrt(50_000))
    assert abs(torch.corrcoef(waits)[0, 1]) < 4.5 / math.sqrt(50_000)


@pytest.mark.parametrize("vocabulary", [5, BLOCK + 5])
def test_two_laws_agree_as_often_as_they_must(vocabulary):
    """The joint law of a draft's and a target's sample, against the closed form; independent noise falls far below."""
    times = 100_000
    p, q = laws(2, vocabulary, 2.0)
    key = fold(torch.arange(times), 3)
    ours, theirs = (coupled_argmax(law.expand(times, -1), key) for law in (p, q))
    wanted = gumbel_agreement(p, q).item()
    tolerance = 4.5 * math.sqrt(wanted * (1 - wanted) / times)
    assert abs((ours == theirs).double().mean().item() - wanted) < tolerance
    apart = coupled_argmax(q.expand(times, -1), fold(key, 1))
    assert (ours == apart).double().mean().item() < wanted - 10 * tolerance
    share = torch.bincount(ours, minlength=vocabulary) / times
    spread = (p.exp() * (1 - p.exp()) / times).sqrt()
    assert ((share - p.exp()).abs() < 5 * spread + 1e-12).all()
