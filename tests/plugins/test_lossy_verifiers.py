"""Lossy rules: each emits the law that it states, and says how far that is from the target's."""

import pytest
import torch

from tempspec.core.lossy import distance
from tempspec.errors import UserError
from tempspec.interfaces import Draft
from tempspec.plugins.lossy_verifiers import MARS, Ensemble, KLBudget, Lenience, SpeculativeCascade, Typical
from tempspec.plugins.verifiers import TokenwiseRejection
from tempspec.testing.enumeration import all_rounds, emitted_law, law_error, mean_accepted
from tempspec.testing.laws import LawPair, law_cases
from tempspec.testing.sampling import SampledNoise
from tests.built_ins import built_in

RULES = {
    "lenience": Lenience(0.4),
    "ensemble": Ensemble(0.3),
    "budget": KLBudget(0.1),
    "cascade": SpeculativeCascade(0.5),
    "typical": Typical(),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("case", ["unlike laws", "near laws", "laws with zeros", "one-hot target", "one-hot draft"])
def test_one_drafted_token_has_the_stated_law(name, case):
    rule, pair = RULES[name], law_cases(4, 1)[case]
    stated = rule.emitted_law(pair.logp[0][None], pair.logq[0][None])[0]
    expected = LawPair((stated, pair.logp[1]), pair.logq).target_law()
    emitted = emitted_law(rule, all_rounds(pair))[1]
    if name == "typical":  # accepted tokens are the draft's, the one behind them the target's own
        emitted, expected = (law.reshape(4, 4).sum(-1) for law in (emitted, expected))
    torch.testing.assert_close(emitted, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", sorted(RULES.keys() - {"typical"}))  # which may also refuse what rejection takes
def test_a_lossy_rule_accepts_more_at_the_stated_distance(name):
    rule, pair = RULES[name], law_cases(4, 1)["unlike laws"]
    assert mean_accepted(rule, all_rounds(pair))[1] > mean_accepted(TokenwiseRejection(), all_rounds(pair))[1]
    stated = float(distance(rule.emitted_law(pair.logp[0][None], pair.logq[0][None])[0, 0], pair.logp[0][0])[0])
    assert law_error(rule, pair).total_variation >= stated - 1e-12 > 0


def test_a_draft_of_typical_tokens_alone_leaves_a_law():
    """Float32's sum of it may exceed 1."""
    logp = (4 * torch.randn(2000, 1, 300, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    best = logp.topk(3).indices
    logq = torch.full_like(logp, -torch.inf).scatter(-1, best, logp.gather(-1, best)).log_softmax(-1)
    law = Typical(epsilon=1e-4).emitted_law(logp, logq)
    assert not law.isnan().any()
    torch.testing.assert_close(law.exp().sum(-1), torch.ones(2000, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", [Lenience(1.0), Ensemble(1.0), KLBudget(0.0)], ids=lambda rule: type(rule).__name__)
def test_at_the_end_of_its_range_a_lossy_rule_is_lossless(rule):
    assert law_error(rule, law_cases(3, 2)["unlike laws"]).largest < 1e-8


def test_budget_is_spent_token_by_token():
    assert law_error(KLBudget(0.1), law_cases(4, 1)["unlike laws"]).kl <= 0.1 + 1e-9


def test_mars_accepts_the_runner_up_where_the_best_hardly_leads():
    logits = torch.tensor([[2.0, 1.9, 0.0], [2.0, 1.0, 0.0], [-1.0, -1.05, -9.0], [2.0, 1.9, 1.89]]).repeat(1, 2)
    logits = logits.reshape(4, 2, 3)
    for token, expected in ((0, [1, 1, 1, 1]), (1, [1, 0, 0, 1]), (2, [0, 0, 0, 0])):
        draft = Draft.certain(torch.full((4, 1), token), torch.ones(4, dtype=torch.int64), 3)
        verdict = MARS(0.9).verify(logits, draft, SampledNoise(torch.arange(4)))
        assert verdict.accepted_B.tolist() == expected
        assert verdict.next_token_B.tolist() == [0] * 4


def test_mars_takes_temperature_0_alone_and_a_single_token():
    assert MARS.greedy_only
    draft = Draft.certain(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 1]), 1)
    assert MARS().verify(torch.ones(2, 4, 1), draft, SampledNoise(torch.arange(2))).accepted_B.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("rule", "options"),
    [(Lenience, {"lenience": 0.0}), (Ensemble, {"weight": 1.1}), (KLBudget, {"budget": -1.0}),
     (SpeculativeCascade, {"tradeoff": -0.1}), (MARS, {"theta": 2.0})],
)  # fmt: skip
def test_options_out_of_range_are_refused(rule, options):
    with pytest.raises(UserError, match=f"{rule.__name__}: {next(iter(options))} must be"):
        rule(**options)


def test_every_lossy_builtin_says_so():
    lossy = {name for name, rule in built_in("verifiers").items() if not rule.lossless}
    assert lossy >= {"Lenience", "Ensemble", "KLBudget", "SpeculativeCascade", "MARS", "Typical"}
