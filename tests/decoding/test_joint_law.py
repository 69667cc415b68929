"""The engine's tokens have the target's joint law, and wrong rules have another."""

import pytest
import torch

from tempspec.core.noise import Stream, uniform
from tempspec.core.verification import next_weight
from tempspec.decoding.noise import RoundNoise
from tempspec.interfaces import Verdict
from tempspec.plugins.drafters import PromptLookup
from tempspec.plugins.lengths import AdaEDL, ConfidenceThreshold
from tests.controls import (
    BlockFirstFailure,
    BlockPlainResidual,
    MatchPlusResidual,
    ResidualFromTarget,
    SharedNoiseResidual,
    Wrong,
    WrongTemperature,
    ratio_coins,
)
from tests.slow import slow_but

from .engines import SAMPLING
from .joint_laws import p_values


@pytest.mark.parametrize("name", slow_but(*(name for name in SAMPLING if name != "KSequential"), among=SAMPLING))
def test_the_engines_joint_law_is_the_targets(target, draft, name):
    assert min(p_values(target, draft, SAMPLING[name], 4000)) > 1e-4


def test_the_joint_law_survives_drafts_that_stop_early(target, draft):
    rule = ConfidenceThreshold(threshold=0.6, longest=4)
    assert min(p_values(target, draft, SAMPLING["BlockVerification"], 4000, length=rule)) > 1e-4


def test_the_joint_law_survives_a_threshold_of_past_rounds(flat_pair):
    rule = AdaEDL(threshold=0.45, longest=3, gain=2.0)
    assert min(p_values(*flat_pair, SAMPLING["BlockVerification"], 4000, length=rule)) > 1e-4


def test_the_joint_law_survives_prompt_lookup(target):
    found = p_values(target, None, SAMPLING["TokenwiseRejection"], 4000, drafter=PromptLookup())
    assert min(found) > 1e-4


class ReusedCoin(Wrong):
    """Samples the residual with the very uniform that the coins used."""

    def verify(self, logp_BKV, draft, noise):
        accepted_B = ratio_coins(logp_BKV, draft, noise)
        weight_BV = next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B)
        return Verdict(accepted_B, noise.draw(weight_BV, Stream.ACCEPT))


CONTROLS = {
    ResidualFromTarget: 2000,
    ReusedCoin: 2000,
    WrongTemperature: 2000,
    MatchPlusResidual: 2000,
    BlockFirstFailure: 2000,
    SharedNoiseResidual: 5000,
    BlockPlainResidual: 12_000,  # off by .006 only
}


@pytest.mark.parametrize("wrong", slow_but(*(wrong for wrong in CONTROLS if CONTROLS[wrong] == 2000), among=CONTROLS))
def test_negative_controls_fail_the_chi_square(flat_pair, wrong):
    assert min(p_values(*flat_pair, wrong(), CONTROLS[wrong])) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "harmless"), [("TokenwiseRejection", True), ("BlockVerification", False)])
def test_noise_keyed_by_position_biases_rules_that_look_ahead(flat_pair, monkeypatch, name, harmless):
    def by_position(noise, stream, count, first=0):
        position_BK = noise.length_B[:, None] + torch.arange(first, first + count)
        return uniform(noise._seed_B[:, None], int(stream), 0, position_BK)

    monkeypatch.setattr(RoundNoise, "_uniform", by_position)
    found = min(p_values(*flat_pair, SAMPLING[name], 6000))
    assert found > 1e-4 if harmless else found < 1e-6


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SAMPLING)
def test_the_engines_joint_law_over_many_runs(target, draft, name):
    assert min(p_values(target, draft, SAMPLING[name], 100_000)) > 1e-4
