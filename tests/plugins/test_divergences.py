import copy

import pytest
import torch

from tempspec.core import divergences as core
from tempspec.errors import UserError
from tempspec.interfaces import Divergence, LossContext
from tempspec.plugins import divergences as plugins
from tempspec.testing import check_divergence
from tests.built_ins import built_in
from tests.ids import plain

DIVERGENCES = built_in("divergences")
OPTIONS = {
    "JensenShannon": [{"beta": beta} for beta in (0.1, 0.5, 0.9)],
    "SkewKL": [{"alpha": alpha} for alpha in (0.1, 0.5)],
    "SkewReverseKL": [{"alpha": alpha} for alpha in (0.1, 0.5)],
    "LKHybrid": [{"eta": eta} for eta in (0.0, 3.0, 10.0)],
    "NormalisedTotalVariation": [{}, {"floor": 0.5}],
    "AlphaBeta": [{}, {"alpha": 1.0, "beta": 1.0}, {"alpha": 0.5, "beta": 2.0}],
    "AdaptiveKL": [{}, {"share": 0.8}],
    "TAID": [{}, {"start": 1.0}, {"steps": 20}],
    "TopKCrossEntropy": [{"k": 1}, {"k": 3}],
    "WeightedSum": [
        {"terms": {"kl": plugins.ForwardKL(), "tv": plugins.TotalVariation()}},
        {"terms": {"kl": plugins.ForwardKL(), "js": plugins.JensenShannon()}, "weights": {"kl": 0.5, "js": 2}},
    ],
}
STOPS_GRADIENT = {"LKHybrid", "NormalisedTotalVariation", "AdaptiveKL", "TAID"}
CROSS_ENTROPIES = {"TopKCrossEntropy", "LabelCrossEntropy"}
ORDER = {
    "ForwardKL": 2,
    "ReverseKL": 2,
    "JensenShannon": 2,
    "SkewKL": 2,
    "SkewReverseKL": 2,
    "TotalVariation": 1,
    "NegativeLogAcceptance": 1,
    "NormalisedTotalVariation": 1,
    "AlphaBeta": 2,
    "AdaptiveKL": 2,
    "TAID": 2,
    "TopKCrossEntropy": 1,
    "LabelCrossEntropy": 1,
    "LogitDifference": 2,
}
MATRIX = [(name, options) for name in DIVERGENCES for options in OPTIONS.get(name, [{}])]


def test_every_built_in_is_registered():
    assert sorted(DIVERGENCES) == sorted(plugins.__all__)


@pytest.mark.parametrize(("name", "options"), MATRIX, ids=plain)
def test_conformance(name, options):
    divergence = getattr(plugins, name)(**options)
    check_divergence(divergence, stops_gradient=name in STOPS_GRADIENT, cross_entropy=name in CROSS_ENTROPIES)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_names_its_source(name):
    assert "arXiv" in getattr(plugins, name).source


@pytest.mark.parametrize(("name", "order"), ORDER.items())
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_gradient_scale_is_a_power_of_the_temperature(name, order, temperature):
    logp, logq = torch.randn(2, 2, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    context = LossContext(label_BT=logp.argmax(-1))
    plain, scaled = (getattr(plugins, name)(scale=scale) for scale in ("none", "gradient"))
    expected = plain(logp, logq, temperature, context) * temperature**order
    torch.testing.assert_close(scaled(logp, logq, temperature, context), expected)


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
        (lambda: plugins.NormalisedTotalVariation(floor=0.0), "floor must be above 0 and finite, got 0.0"),
        (lambda: plugins.AlphaBeta(alpha=0.0), "alpha must be above 0 and finite, got 0.0: its limit 0 is ReverseKL"),
        (lambda: plugins.AlphaBeta(beta=float("inf")), "beta must be above 0 and finite, got inf"),
        (lambda: plugins.AdaptiveKL(share=1.0), "share must be strictly between 0 and 1, got 1.0"),
        (lambda: plugins.TAID(start=0.0), "0 < start <= end <= 1, got 0.0 and 1.0"),
        (lambda: plugins.TAID(steps=0), "steps must be 1 or more, got 0"),
        (lambda: plugins.TAID(rate=-1.0), "rate must be 0 or more and finite, got -1.0"),
        (lambda: plugins.TAID(memory=1.0), r"memory must be in \[0, 1\), got 1.0"),
        (lambda: plugins.TopKCrossEntropy(k=0), "k must be 1 or more, got 0"),
        (lambda: plugins.WeightedSum({}), r"one weight for each term, got terms \[\]"),
        (lambda: plugins.WeightedSum({"a": plugins.ForwardKL()}, {"b": 1.0}), r"terms \['a'\], weights \['b'\]"),
        (lambda: plugins.WeightedSum({"a": plugins.ForwardKL()}, {"a": -1.0}), "weights must be 0 or more"),
        (lambda: plugins.WeightedSum({"a": plugins.ForwardKL()}, {"a": 0.0}), "not all 0, got {'a': 0.0}"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("TAID", {"start": 1.0, "end": 1.0, "steps": 1, "rate": 0.0, "memory": 0.0}),
        ("LKHybrid", {"eta": 0.0}),
        ("TopKCrossEntropy", {"k": 1}),
    ],
)
def test_options_at_the_ends_of_their_ranges_are_taken(name, options):
    made = getattr(plugins, name)(**options)
    assert {option: getattr(made, option) for option in options} == options


@pytest.mark.parametrize(("name", "options"), MATRIX, ids=plain)
def test_can_be_copied(name, options):
    divergence: Divergence = getattr(plugins, name)(**options, scale="gradient")
    logp, logq = torch.randn(2, 2, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    context = LossContext(label_BT=logp.argmax(-1))
    copied = copy.deepcopy(divergence)(logp, logq, 2.0, context)
    assert torch.equal(copied, divergence(logp, logq, 2.0, context))


def test_a_weighted_sum_is_the_sum_of_its_weighted_terms():
    logp, logq = torch.randn(2, 2, 3, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    terms = {"kl": plugins.ForwardKL(scale="gradient"), "top": plugins.TopKCrossEntropy(k=2), "off": plugins.TAID()}
    weighted = plugins.WeightedSum(terms, {"kl": 0.5, "top": 2.0, "off": 0.0})
    expected = 0.5 * 9 * plugins.ForwardKL()(logp, logq) + 2 * plugins.TopKCrossEntropy(k=2)(logp, logq)
    torch.testing.assert_close(weighted(logp, logq, 3.0), expected)
    weighted.scale = "gradient"
    expected = 0.5 * 9 * plugins.ForwardKL()(logp, logq) + 2 * 3 * plugins.TopKCrossEntropy(k=2)(logp, logq)
    torch.testing.assert_close(weighted(logp, logq, 3.0), expected)
    assert terms["top"].scale == "none"
    assert set(weighted.state_dict()) == {"term_off.share", "term_off.momentum", "term_off.loss"}


def test_labels_are_needed_for_a_cross_entropy_with_them():
    logp = torch.zeros(1, 1, 4).log_softmax(-1)
    with pytest.raises(UserError, match="got none: give a context with label_BT"):
        plugins.LabelCrossEntropy()(logp, logp)


def test_taid_runs_ahead_of_its_line_while_the_loss_falls():
    logp, logq = torch.randn(2, 1, 1, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    line = plugins.TAID(start=0.4, rate=0.0)
    for step, share in ((0, 0.4), (5, 0.7), (10, 1.0), (20, 1.0)):
        context = LossContext(step=step, total_steps=10)
        line.observe(torch.tensor(1.0), context)
        torch.testing.assert_close(line(logp, logq, 1.0, context), core.interpolated_kl(logp, logq, share=share))
    falling, rising = plugins.TAID(rate=0.1, memory=0.0), plugins.TAID(rate=0.1, memory=0.0)
    for step in range(5):
        falling.observe(torch.tensor(5.0 - step), LossContext(step, 100))
        rising.observe(torch.tensor(1.0 + step), LossContext(step, 100))
    assert 1 > falling.share > rising.share > 0.4 + 0.6 * 5 / 100
