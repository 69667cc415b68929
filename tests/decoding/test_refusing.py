"""What an engine refuses before any token."""

import copy

import pytest
import torch

from tempspec.decoding.engine import Engine
from tempspec.decoding.refusing import compiles
from tempspec.decoding.sweep import Sweep
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.models.conditioning import condition
from tempspec.plugins.drafters import EarlyExit

from .engines import LOSSLESS, SAMPLING, VERIFIERS, speculative


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (Request((1,) * 300, key="p7"), "prompt p7 has 300 tokens"),
        (Request((99,)), "token id 99"),
        (Request((-1,)), "token id"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_decoding(target, request_, what):
    with pytest.raises(UserError, match=what):
        list(Engine(target, 5).run([Request((1,)), request_]))


def test_a_greedy_rule_refuses_other_temperatures(target, draft):
    with pytest.raises(UserError, match="target_temperature 0 only"):
        list(speculative(target, draft, VERIFIERS["GreedyMatch"]).run([Request((1,), 0.5)]))


def test_a_drafter_without_its_model_is_refused(target):
    with pytest.raises(UserError, match="needs a draft model"):
        speculative(target, None, SAMPLING["TokenwiseRejection"])


def test_layers_of_an_early_exit_are_told_by_their_own_name(target):
    with pytest.raises(UserError, match="EarlyExit: layers must be 1 to 1, the target's number of layers, got 9"):
        speculative(target, None, LOSSLESS["TokenwiseRejection"], drafter=EarlyExit(9))


def test_a_draft_that_cannot_be_compiled_leaves_auto_eager(draft):
    conditioned = copy.deepcopy(draft)
    condition(conditioned, 2)
    cuda = torch.device("cuda")
    assert compiles("auto", cuda, draft)
    assert not compiles("auto", cuda, conditioned)
    with pytest.raises(UserError, match="conditioned on the temperature cannot be compiled"):
        compiles(True, cuda, conditioned)


def test_auto_compiles_nothing_on_a_cpu(target, draft):
    engine = speculative(target, draft, SAMPLING["TokenwiseRejection"], compile="auto")
    engine.reserve(20)
    assert not engine._compile
    assert Sweep().compile == "auto"
