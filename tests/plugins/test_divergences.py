import copy

import pytest
import torch

from tempspec import registry
from tempspec.interfaces import Divergence
from tempspec.plugins import divergences as plugins
from tempspec.testing import check_divergence

NAMES = [
    plugin.name for plugin in registry.scan() if plugin.family == "divergences" and plugin.distribution == "tempspec"
]
OPTIONS = {
    "JensenShannon": [{"beta": beta} for beta in (0.1, 0.5, 0.9)],
    "SkewKL": [{"alpha": alpha} for alpha in (0.1, 0.5)],
    "SkewReverseKL": [{"alpha": alpha} for alpha in (0.1, 0.5)],
    "LKHybrid": [{"eta": eta} for eta in (0.0, 3.0, 10.0)],
}
ORDER = {
    "ForwardKL": 2,
    "ReverseKL": 2,
    "JensenShannon": 2,
    "SkewKL": 2,
    "SkewReverseKL": 2,
    "TotalVariation": 1,
    "NegativeLogAcceptance": 1,
}
MATRIX = [(name, options) for name in NAMES for options in OPTIONS.get(name, [{}])]


def test_every_built_in_is_registered():
    assert sorted(NAMES) == plugins.__all__


@pytest.mark.parametrize(("name", "options"), MATRIX, ids=str)
def test_conformance(name, options):
    divergence = getattr(plugins, name)(**options)
    check_divergence(divergence, stops_gradient=name == "LKHybrid")


@pytest.mark.parametrize("name", NAMES)
def test_names_its_source(name):
    assert "arXiv" in getattr(plugins, name).source


@pytest.mark.parametrize(("name", "order"), ORDER.items())
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_gradient_scale_is_a_power_of_the_temperature(name, order, temperature):
    if name == "LKHybrid":
        return
    logp, logq = torch.randn(2, 2, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    plain, scaled = getattr(plugins, name)(), getattr(plugins, name)(scale="gradient")
    torch.testing.assert_close(scaled(logp, logq, temperature), plain(logp, logq) * temperature**order)


def test_lk_hybrid_scales_each_term_by_its_own_power():
    logp, logq = torch.randn(2, 2, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    distance = plugins.TotalVariation()(logp, logq)
    weight = torch.exp(-3 * (1 - distance))
    expected = weight * 4 * plugins.ForwardKL()(logp, logq) + (1 - weight) * 2 * distance
    torch.testing.assert_close(plugins.LKHybrid(scale="gradient")(logp, logq, 2.0), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plugins.JensenShannon(beta=1.0), "beta must be strictly between 0 and 1, got 1.0"),
        (lambda: plugins.SkewKL(alpha=0.0), "alpha must be strictly between 0 and 1, got 0.0"),
        (lambda: plugins.SkewReverseKL(alpha=float("nan")), "alpha must be strictly between 0 and 1, got nan"),
        (lambda: plugins.LKHybrid(eta=-1.0), "eta must be 0 or more and finite, got -1.0"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", NAMES)
def test_can_be_copied(name):
    divergence: Divergence = getattr(plugins, name)(scale="gradient")
    assert vars(copy.deepcopy(divergence)) == vars(divergence)
