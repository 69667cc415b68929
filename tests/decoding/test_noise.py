"""Noise that is hashed ahead is the noise."""

import pytest
import torch

from tempspec.core import hosts
from tempspec.core.noise import Stream
from tempspec.decoding import noise as of_rounds
from tempspec.decoding.noise import ROUNDS_AHEAD, NoiseAhead, RoundNoise

SEED, ROUND, LENGTH = torch.tensor([3, 2**62, 5]), torch.tensor([0, 7, 100]), torch.tensor([4, 9, 1])


def test_rounds_hashed_ahead_equal_rounds_hashed_one_by_one():
    ahead = NoiseAhead(SEED, ROUND, offsets=4)
    generator = torch.Generator().manual_seed(0)
    for count in range(ROUNDS_AHEAD):
        assert not ahead.exhausted
        many, one = ahead.next(LENGTH), RoundNoise(SEED, ROUND + count, LENGTH)
        weight, chance = torch.rand(3, 4, 9, generator=generator), torch.rand(3, 4, generator=generator)
        assert torch.equal(many.coins(chance), one.coins(chance))
        for stream in (Stream.RESIDUAL, Stream.TARGET):
            assert torch.equal(many.draw(weight, stream), one.draw(weight, stream))
        assert torch.equal(many.draw(weight[:, 0]), one.draw(weight[:, 0]))
        for offset in range(4):
            assert torch.equal(many.draft(weight[:, 0], offset), one.draft(weight[:, 0], offset))
    assert ahead.exhausted


@pytest.mark.parametrize("stream", [Stream.ACCEPT, Stream.TOKEN])
def test_more_offsets_than_were_hashed_ahead_are_hashed_at_once(stream):
    many = NoiseAhead(SEED, ROUND, offsets=2).next(LENGTH)
    assert torch.equal(many._uniform(stream, 5), RoundNoise(SEED, ROUND, LENGTH)._uniform(stream, 5))


def test_shared_noise_is_the_same_by_position_or_at_once():
    noise, logp = RoundNoise(SEED, ROUND, LENGTH), torch.randn(3, 4, 70, generator=torch.Generator().manual_seed(0))
    whole = noise.shared_gumbel(4, 70)
    assert torch.equal(whole[:, :3], noise.shared_gumbel(3, 70))
    assert torch.equal(noise.coupled(logp), (logp + whole).argmax(-1))
    for offset in range(4):
        one = noise.coupled(logp[:, offset : offset + 1], offset)
        assert torch.equal(one, noise.coupled(logp)[:, offset : offset + 1])
        later = RoundNoise(SEED, ROUND + 1, LENGTH + offset)
        assert torch.equal(one, later.coupled(logp[:, offset : offset + 1]))


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("most", [0, 1 << 30])
def test_shared_noise_picks_the_same_however_it_is_made(monkeypatch, free, most):
    logp = torch.randn(3, 4, 70, generator=torch.Generator().manual_seed(0))
    expected = (logp + RoundNoise(SEED, ROUND, LENGTH).shared_gumbel(4, 70)).argmax(-1)
    monkeypatch.setattr(hosts, "reads_free", lambda value: free)
    monkeypatch.setattr(of_rounds, "WHOLE_ON_A_CPU", most)
    monkeypatch.setattr(of_rounds, "WHOLE_ON_A_GPU", most)
    for noise in (RoundNoise(SEED, ROUND, LENGTH), NoiseAhead(SEED, ROUND, offsets=4).next(LENGTH)):
        drawn = [noise.coupled(logp[:, offset : offset + 1], offset) for offset in range(4)]
        assert torch.equal(torch.cat(drawn, 1), expected)
        assert torch.equal(noise.coupled(logp), expected)
        assert torch.equal(noise.coupled(logp[:, 1:3], 1), expected[:, 1:3])
