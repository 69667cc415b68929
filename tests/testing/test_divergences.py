"""Negative controls: each law of the kit catches a divergence that breaks it, and names it."""

import pytest
import torch

from tempspec.core.acceptance import overlap
from tempspec.core.divergences import forward_kl, negative_log_acceptance, total_variation
from tempspec.interfaces import Divergence
from tempspec.plugins.divergences import LKHybrid, TotalVariation
from tempspec.testing import ConformanceError, check_divergence


def naive_kl(logp, logq):
    return (logp.exp() * (logp - logq)).sum(-1)


def guarded_in_the_value_only(logp, logq):
    overlap = torch.minimum(logp.double(), logq.double())
    return torch.where(overlap.amax(-1) == -torch.inf, torch.inf, -overlap.logsumexp(-1))


def with_an_epsilon(logp, logq):
    return -overlap(logp, logq).clamp(min=torch.finfo(logq.dtype).eps).log()


def in_the_input_precision(logp, logq):
    return 0.5 * (logp.exp() - logq.exp()).abs().sum(-1)


def writing_into_its_input(logp, logq):
    value = total_variation(logp, logq)
    logp -= 1.0
    return value


def with_a_pull(logp, logq):
    q = logq.exp()
    return total_variation(logp, logq) + (q - q.detach())[..., 0]


def dependent_on_the_batch(logp, logq):
    value = total_variation(logp, logq)
    return value * (1 + value.detach().max())


def uphill(logp, logq):
    value = total_variation(logp, logq)
    return 2 * value.detach() - value


CONTROLS = {
    "wrong sign": (lambda p, q: -forward_kl(p, q), "never negative"),
    "naive": (naive_kl, "never negative, nor NaN"),
    "nothing": (lambda p, q: 0 * q.exp().sum(-1), "positive where p differs"),
    "offset": (lambda p, q: total_variation(p, q) + 1, "the value is 0 at p = q"),
    "pull": (with_a_pull, "the gradient is 0 at p = q"),
    "summed": (lambda p, q: forward_kl(p, q).sum(), "one floating-point value per position"),
    "unreduced": (lambda p, q: (p.exp() - q.exp()).abs(), "one floating-point value per position"),
    "in place": (writing_into_its_input, "the inputs are left alone"),
    "hidden NaN": (lambda p, q: forward_kl(p, q).nan_to_num(0.0, posinf=torch.inf), "NaN stays NaN"),
    "input's precision": (in_the_input_precision, "bfloat16 laws are computed with in float32 or better"),
    "epsilon": (with_an_epsilon, "float32 agrees with float64"),
    "one token favoured": (
        lambda p, q: total_variation(p, q) * (1 + p.double().exp()[..., 0]),
        "the order of the vocabulary",
    ),
    "mean over V": (lambda p, q: forward_kl(p, q) / p.shape[-1], "tokens that both laws forbid"),
    "batch": (dependent_on_the_batch, "masking equals indexing"),
    "guarded value": (guarded_in_the_value_only, "the gradient is finite, also at zeros of p and q"),
    "no gradient": (lambda p, q: total_variation(p, q.detach()) + 0 * q.exp().sum(-1), "a small step"),
    "uphill": (uphill, "a small step"),
}


class Wrapped(Divergence):
    gradient_order = 1

    def __init__(self, function):
        super().__init__()
        self.function = function

    def per_position(self, logp_BTV, logq_BTV):
        return self.function(logp_BTV, logq_BTV)


class WrongOrder(TotalVariation):
    gradient_order = 2


class AlwaysScaled(TotalVariation):
    def __call__(self, logp_BTV, logq_BTV, temperature=1.0, context=None):
        return self.per_position(logp_BTV, logq_BTV) * temperature


class ScaledAtOne(TotalVariation):
    def __call__(self, logp_BTV, logq_BTV, temperature=1.0, context=None):
        return self.per_position(logp_BTV, logq_BTV) * (2 * temperature if self.scale == "gradient" else 1)


class MeanTemperature(TotalVariation):
    def __call__(self, logp_BTV, logq_BTV, temperature=1.0, context=None):
        return super().__call__(logp_BTV, logq_BTV, torch.as_tensor(temperature).mean())


class WithoutScale(TotalVariation):
    def __init__(self):
        pass

    def __call__(self, logp_BTV, logq_BTV, temperature=1.0, context=None):
        return self.per_position(logp_BTV, logq_BTV)


def test_what_the_controls_are_built_from_conforms():
    check_divergence(Wrapped(total_variation))
    check_divergence(Wrapped(negative_log_acceptance))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_broken_law_is_caught_and_named(name):
    function, law = CONTROLS[name]
    with pytest.raises(ConformanceError) as caught:
        check_divergence(Wrapped(function))
    assert law in caught.value.law


@pytest.mark.parametrize(
    ("cls", "law"),
    [
        (WrongOrder, "scale='gradient' keeps the gradient's size"),
        (AlwaysScaled, "scale='none' ignores the temperature"),
        (ScaledAtOne, "scale='gradient' changes nothing at T = 1"),
        (MeanTemperature, "act row by row"),
        (WithoutScale, "a divergence has the option `scale`"),
    ],
)
def test_a_wrong_temperature_factor_is_caught(cls, law):
    with pytest.raises(ConformanceError) as caught:
        check_divergence(cls())
    assert law in caught.value.law


def test_a_stopped_gradient_must_be_declared():
    with pytest.raises(ConformanceError, match="stops_gradient=True if it is not meant to be"):
        check_divergence(LKHybrid())
    check_divergence(LKHybrid(), stops_gradient=True)


def test_the_message_says_law_place_and_amount():
    with pytest.raises(ConformanceError) as caught:
        check_divergence(Wrapped(CONTROLS["offset"][0]))
    error = caught.value
    assert str(error) == f"{error.law}: failed at {error.where}: {error.by}"
    assert (error.law, error.where) == ("the value is 0 at p = q", "p = q")
    assert error.by == "off by 1, allowed 1e-09"


class Labelled(Divergence):
    """A cross-entropy with the labels of its context."""

    gradient_order = 1

    def per_position(self, logp, logq):
        raise AssertionError("the kit gives a context")

    def in_context(self, logp, logq, context):
        return (
            -logq.gather(-1, context.label_BT[..., None]).squeeze(-1).to(torch.promote_types(logq.dtype, torch.float32))
        )


def test_a_cross_entropy_is_told_from_a_divergence():
    check_divergence(Labelled(), cross_entropy=True)
    with pytest.raises(ConformanceError, match="0 at p = q"):
        check_divergence(Labelled())
