"""Gumbel coupling has continuous noise, which no enumeration covers: what it emits is settled noise by noise."""

import itertools

import pytest
import torch

from tempspec.core.noise import gumbel
from tempspec.interfaces import Draft, Noise
from tempspec.plugins.verifiers import GumbelCoupling

VOCABULARY, DRAFTED = 3, 2


class Given(Noise):
    """Hands out one given piece of Gumbel noise, and nothing else."""

    def __init__(self, gumbel_BNV):
        self.gumbel_BNV = gumbel_BNV

    def coins(self, probability_BK):
        raise AssertionError("coupling tosses no coins")

    def draw(self, weight, stream=None):
        raise AssertionError("coupling draws nothing")

    def shared_gumbel(self, count, vocabulary):
        return self.gumbel_BNV


@pytest.mark.parametrize("length", range(DRAFTED + 1))
def test_for_any_noise_and_draft_the_targets_samples_are_emitted(length):
    chains_CK = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=DRAFTED)))
    noises = 2000
    token_BK = chains_CK.repeat(noises, 1)
    rows = len(token_BK)
    generator = torch.Generator().manual_seed(0)
    logp_BNV = torch.randn(rows, DRAFTED + 1, VOCABULARY, generator=generator, dtype=torch.float64).log_softmax(-1)
    places = torch.arange(rows * (DRAFTED + 1) * VOCABULARY).view(rows, DRAFTED + 1, VOCABULARY)
    gumbel_BNV = gumbel(places)
    own_BN = (logp_BNV + gumbel_BNV).argmax(-1)
    draft = Draft.certain(token_BK, torch.full((rows,), length), VOCABULARY)
    verdict = GumbelCoupling().verify(logp_BNV, draft, Given(gumbel_BNV))
    agree_BK = (token_BK == own_BN[:, :-1])[:, :length]
    assert torch.equal(verdict.accepted_B, agree_BK.long().cumprod(1).sum(1))
    assert torch.equal(verdict.next_token_B, own_BN.gather(1, verdict.accepted_B[:, None]).squeeze(1))
