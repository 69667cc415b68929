import math

import pytest
import torch

from tempspec.core.noise import Stream, fold, gumbel, mix, open_uniform, uniform


def test_noise_is_a_function_of_its_key_alone():
    seeds = torch.tensor([3, 4, 5])
    whole = uniform(seeds[:, None], Stream.ACCEPT, torch.arange(7))
    alone = uniform(torch.tensor(4), Stream.ACCEPT, torch.arange(7))
    assert torch.equal(whole[1], alone)


def test_parts_of_a_key_are_not_interchangeable():
    assert fold(1, 2).item() != fold(2, 1).item()
    assert fold(1, 2).item() != fold(3).item()


def test_mix_is_splitmix64s():
    """The first outputs from state 0, as its authors' program prints them (prng.di.unimi.it/splitmix64.c)."""
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    state = 0x9E3779B97F4A7C15 * torch.arange(1, 5)
    assert [value % 2**64 for value in mix(state).tolist()] == first
    assert fold(0).item() % 2**64 == first[0]
    assert fold(1234567).item() % 2**64 == 6457827717110365317


def test_mix_is_a_bijection_on_a_sample():
    assert len(mix(torch.arange(100_000)).unique()) == 100_000


@pytest.mark.parametrize("key", [(0,), (1, 2), (2**62, 5)])
def test_uniforms_have_the_moments_of_the_uniform_law(key):
    u = uniform(*key, torch.arange(200_000))
    for power in (1, 2, 3):
        spread = math.sqrt(1 / (2 * power + 1) - 1 / (power + 1) ** 2) / math.sqrt(len(u))
        assert abs((u**power).mean().item() - 1 / (power + 1)) < 4.5 * spread


def test_streams_rounds_and_offsets_are_uncorrelated():
    seeds = torch.arange(100_000)
    columns = [uniform(seeds, stream, round_, offset) for stream in (1, 2) for round_ in (0, 1) for offset in (0, 1)]
    correlation = torch.corrcoef(torch.stack(columns))
    off_diagonal = correlation - torch.eye(len(columns))
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(len(seeds))


def test_gumbel_noise_samples_a_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0])
    noise = gumbel(torch.arange(200_000)[:, None], torch.arange(3))
    share = torch.bincount((logits + noise).argmax(-1), minlength=3) / 200_000
    assert torch.allclose(share.double(), logits.double().softmax(-1), atol=0.005)


def test_gumbel_noise_is_finite():
    assert gumbel(torch.arange(1_000_000)).isfinite().all()
    extremes = torch.tensor([0, -1, 2**63 - 1, -(2**63), 4095, -4096])
    assert torch.log(-torch.log(open_uniform(extremes))).isfinite().all()


def test_streams_keep_their_numbers():
    """Another number is other noise for every seed."""
    order = (Stream.DRAFT, Stream.ACCEPT, Stream.RESIDUAL, Stream.TARGET, Stream.SHARED, Stream.TOKEN, Stream.BOOTSTRAP)
    assert list(map(int, order)) == [1, 2, 3, 4, 5, 6, 7]
