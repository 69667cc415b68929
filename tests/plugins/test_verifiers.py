import pytest
import torch

from tempspec.core.sampling import one_hot_log
from tempspec.errors import UserError
from tempspec.interfaces import Draft
from tempspec.plugins.lossy_verifiers import Typical
from tempspec.plugins.verifiers import BlockVerification, GreedyMatch, GumbelCoupling, SampledMatch, TokenwiseRejection
from tempspec.testing import check_verifier, law_error
from tempspec.testing.enumeration import accepted_law, all_rounds, emitted_law
from tempspec.testing.laws import LawPair, context_free, law_cases
from tempspec.testing.sampling import SampledNoise, sample_rounds
from tests.built_ins import built_in
from tests.slow import slow_but

P = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
Q = torch.tensor([0.2, 0.4, 0.1, 0.3], dtype=torch.float64)
VERIFIERS = built_in("verifiers")


def tau_law(verifier, pair):
    """P(tau = k) when K tokens are drafted, exact."""
    rounds = all_rounds(pair)
    drafted = rounds.group_B == pair.longest
    return (accepted_law(verifier, rounds)[drafted] * rounds.weight_B[drafted, None]).sum(0)


def mean_tau(verifier, pair):
    law = tau_law(verifier, pair)
    return float((law * torch.arange(len(law))).sum())


@pytest.mark.parametrize("name", slow_but(*(name for name in VERIFIERS if name != "KLBudget"), among=VERIFIERS))
def test_every_builtin_conforms(name):
    check_verifier(VERIFIERS[name]())


@pytest.mark.parametrize(
    "verifier",
    [TokenwiseRejection(), BlockVerification(), SampledMatch()],
    ids=lambda verifier: type(verifier).__name__,
)
@pytest.mark.parametrize("vocabulary", [2, 4])
def test_lossless_on_other_vocabularies_and_seeds(verifier, vocabulary):
    check_verifier(verifier, vocabulary=vocabulary, longest=2, seed=7)


@pytest.mark.parametrize(
    ("verifier", "expected"),
    [
        (TokenwiseRejection(), (0.650000, 1.072500, 1.347125)),
        (BlockVerification(), (0.650000, 1.150000, 1.548625)),
    ],
    ids=["token-wise", "block"],
)
@pytest.mark.parametrize("drafted", [1, 2, 3])
def test_accepted_length_of_case_a(verifier, expected, drafted):
    assert mean_tau(verifier, context_free(P, Q, drafted)) == pytest.approx(expected[drafted - 1], abs=1e-9)


def test_block_distribution_of_case_a():
    law = tau_law(BlockVerification(), context_free(P, Q, 3))
    assert law.tolist() == pytest.approx([0.35, 0.15, 0.101375, 0.398625], abs=1e-9)


def test_gumbel_agreement_of_case_a():
    rows = 400_000
    rounds = sample_rounds(GumbelCoupling(), context_free(P, Q, 1), rows)
    interval = 4 * (0.618120 * 0.381880 / rows) ** 0.5
    assert rounds.verdict.accepted_B.double().mean().item() == pytest.approx(0.618120, abs=interval)


@pytest.mark.parametrize("name", law_cases(3, 3))
def test_block_never_accepts_less_than_tokenwise(name):
    pair = law_cases(3, 3)[name]
    block, tokenwise = mean_tau(BlockVerification(), pair), mean_tau(TokenwiseRejection(), pair)
    assert block >= tokenwise - 1e-12
    if name in {"one-hot draft", "equal laws", "one-hot target"}:
        assert block == pytest.approx(tokenwise, abs=1e-12)


def test_block_survival_estimates_the_accepted_length():
    pair = law_cases(3, 3)["unlike laws"]
    law = tau_law(BlockVerification(), pair)
    at_least = law.flip(0).cumsum(0).flip(0)[1:]
    from_survival, chance, survival = [], torch.ones(1).double(), torch.ones(1).double()
    for logp, logq in zip(pair.logp, pair.logq, strict=False):
        survival = (survival[:, None] * (logp - logq).exp()).clamp(max=1).flatten()
        chance = (chance[:, None] * logq.exp()).flatten()
        from_survival.append(float((chance * survival).sum()))
    assert at_least.tolist() == pytest.approx(from_survival, abs=1e-12)


@pytest.mark.parametrize(
    "verifier",
    [TokenwiseRejection(), BlockVerification(), GumbelCoupling()],
    ids=lambda verifier: type(verifier).__name__,
)
def test_equal_laws_accept_everything(verifier):
    rounds = sample_rounds(verifier, law_cases(4, 3)["equal laws"], 2000)
    assert rounds.verdict.accepted_B.tolist() == [3] * 2000


@pytest.mark.parametrize(
    "verifier",
    [TokenwiseRejection(), BlockVerification(), SampledMatch(), GumbelCoupling(), Typical()],
    ids=lambda verifier: type(verifier).__name__,
)
def test_disjoint_laws_accept_nothing(verifier):
    rounds = sample_rounds(verifier, law_cases(4, 3)["disjoint laws"], 2000)
    assert rounds.verdict.accepted_B.tolist() == [0] * 2000


@pytest.mark.parametrize("name", [*(n for n, rule in VERIFIERS.items() if rule.lossless), "Typical"])
def test_temperature_zero_is_greedy_matching(name):
    verifier = VERIFIERS[name]()
    rounds = sample_rounds(verifier, law_cases(3, 3)["one-hot target"], 500, ragged=True)
    greedy = GreedyMatch().verify(rounds.logp_BKV, rounds.draft, SampledNoise(torch.zeros(500, dtype=torch.int64)))
    assert torch.equal(rounds.verdict.accepted_B, greedy.accepted_B)
    assert torch.equal(rounds.verdict.next_token_B, greedy.next_token_B)


def test_acceptance_of_tokenwise_is_one_minus_total_variation():
    logp, logq = P.log().expand(1, 1, -1), Q.log().expand(1, 1, -1)
    draft = Draft(torch.tensor([[0]]), torch.tensor([1]), logq)
    total_variation = (P - Q).abs().sum() / 2
    assert TokenwiseRejection().expected_acceptance(logp, draft).item() == pytest.approx(1 - total_variation.item())


def test_one_hot_draft_is_accepted_as_often_as_the_target_says():
    pair = LawPair((P.log()[None], P.log().expand(4, -1)), (one_hot_log(torch.tensor([2]), 4, torch.float64),))
    for verifier in (TokenwiseRejection(), BlockVerification(), SampledMatch()):
        assert mean_tau(verifier, pair) == pytest.approx(0.15)


def test_gumbel_coupling_emits_one_text_whatever_was_drafted():
    pairs = [law_cases(4, 3, seed)["unlike laws"] for seed in (1, 2)]
    coupled = [
        sample_rounds(GumbelCoupling(), LawPair(pairs[0].logp, pair.logq), 5000) for pair in (pairs[0], pairs[1])
    ]
    first, second = (rounds.token_BK for rounds in coupled)
    both = torch.minimum(*(rounds.verdict.accepted_B for rounds in coupled))
    emitted = torch.arange(4) <= both[:, None]
    assert (coupled[0].verdict.accepted_B != coupled[1].verdict.accepted_B).any()
    assert torch.equal(first[emitted], second[emitted])


@pytest.mark.parametrize(
    "options", [{}, {"epsilon": 0.3, "delta": 0.9}, {"epsilon": 0.0}, {"epsilon": 1.0, "delta": 9.0}]
)
def test_typical_acceptance_has_its_closed_form(options):
    verifier = Typical(**options)
    pair = law_cases(3, 2)["unlike laws"]
    emitted = emitted_law(verifier, all_rounds(pair))[2]
    expected, drafting = torch.zeros(1).double(), torch.ones(1).double()
    for depth, logp in enumerate(pair.logp):
        p = logp.exp()
        expected = expected[:, None] * p
        if depth == pair.longest:
            expected = expected + drafting[:, None] * p
            break
        cap = torch.tensor(verifier.epsilon)
        typical = p > torch.minimum(cap, verifier.delta * (p * logp).sum(-1).exp())[:, None]
        kept = torch.where(typical, pair.logq[depth].exp(), 0.0)
        expected = (expected + drafting[:, None] * (1 - kept.sum(-1, keepdim=True)) * p).flatten()
        drafting = (drafting[:, None] * kept).flatten()
    torch.testing.assert_close(emitted, expected.flatten(), rtol=0, atol=1e-12)


def test_typical_is_lossy_and_says_how_far():
    assert not Typical.lossless
    near = law_error(Typical(epsilon=1.0, delta=9.0), context_free(P, Q, 1)).total_variation
    assert near == pytest.approx(0.0, abs=1e-12)  # nothing is typical: all tokens are the target's own
    assert law_error(Typical(), context_free(P, Q, 1)).total_variation == pytest.approx(0.35)  # all is: the draft's


@pytest.mark.parametrize("options", [{"epsilon": -0.1}, {"epsilon": 1.1}, {"delta": -1.0}, {"delta": float("nan")}])
def test_typical_refuses_options_out_of_range(options):
    with pytest.raises(UserError, match=f"Typical: {next(iter(options))} must be"):
        Typical(**options)
