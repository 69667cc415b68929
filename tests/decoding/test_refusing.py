"""What an engine refuses before any token."""

import pytest

from tempspec.decoding.engine import Engine
from tempspec.errors import UserError
from tempspec.interfaces import Request
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
