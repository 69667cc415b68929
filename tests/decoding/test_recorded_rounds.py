"""A recorded round is the round itself: recorded on a CPU by a tape, which holds fast all that a CUDA graph does."""

import warnings
from itertools import cycle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tempspec.core import hosts
from tempspec.decoding import recorded_rounds
from tempspec.decoding.engine import Engine
from tempspec.errors import UserError
from tempspec.interfaces import Draft, Drafter, Request
from tempspec.models import compiling
from tempspec.plugins.drafters import EarlyExit, PromptLookup, SuffixLookup
from tempspec.plugins.lengths import ConfidenceThreshold, FixedLength, Goodput, Heuristic
from tempspec.plugins.lossy_verifiers import Lenience
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import KSequential, RecursiveRejection, Traversal
from tempspec.plugins.verifiers import BlockVerification, GreedyMatch, GumbelCoupling, TokenwiseRejection
from tests.decoding.engines import run, speculative
from tests.decoding.tape import Tapes
from tests.decoding.test_host_reads import HostReads
from tests.tiny import llama

LONG = tuple(1 + place % 22 for place in range(253))
"""A prompt whose row leaves the smallest view after a few tokens."""


@pytest.fixture(scope="module")
def models():
    return llama(0, 24, 2, gain=8.0, context=600), llama(1, 24, 1, gain=8.0, context=600)


@pytest.fixture
def tapes(monkeypatch):
    made = Tapes()
    monkeypatch.setattr(hosts, "reads_free", lambda value: False)
    monkeypatch.setattr(compiling, "recorder", lambda device: made)
    return made


def requests(temperatures=(0.0, 1.0), **options):
    """More than the slots, of uneven lengths; each slot gets rows of several kinds."""
    prompts = [(3, 4, 5, 3, 4, 5), LONG, (7, 8, 9, 7), (5, 6, 7, 8, 9)]
    return [
        Request(prompt, tau, max_new_tokens=5 + 3 * at, seed=at, key=str(at), **options)
        for at, (prompt, tau) in enumerate(zip(prompts, cycle(temperatures), strict=False))
    ]


def told(completions):
    """What engines say of each request."""
    return [(c.tokens, c.finish, c.drafted, c.tested, c.accepted) for c in completions]


def quietly(engine, given):
    """What an engine says where it warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return run(engine, given)


def engines(models, verifier, **options):
    """That of plain rounds, and that of recorded ones."""
    target, draft = models
    options = {"draft": draft, "slots": 2} | options
    return (speculative(target, verifier=verifier, compile=how, **options) for how in (False, "round"))


PATHS = {
    "token": (TokenwiseRejection(), {}),
    "block": (BlockVerification(), {}),
    "coupled": (GumbelCoupling(), {}),
    "greedy": (GreedyMatch(), {}),
    "lossy": (Lenience(0.5), {}),
    "early exit": (TokenwiseRejection(), {"drafter": EarlyExit(1), "draft": None}),
    "prompt lookup": (TokenwiseRejection(), {"drafter": PromptLookup(), "draft": None}),
    "a static tree": (RecursiveRejection(), {"drafter": StaticTree([2, 2, 1])}),
    "a static tree from the leaves": (Traversal(), {"drafter": StaticTree([2, 2, 1])}),
    "a static tree of independent nodes": (KSequential(), {"drafter": StaticTree([2, 2], siblings="independent")}),
    "a dynamic tree": (RecursiveRejection(), {"drafter": DynamicTree(3, 3, 6)}),
    "a dynamic tree from the leaves": (Traversal(), {"drafter": DynamicTree(3, 3, 6)}),
}


@pytest.mark.parametrize("path", PATHS)
def test_recorded_rounds_are_the_plain_ones(path, models, tapes):
    verifier, options = PATHS[path]
    given = requests((0.0,) if path == "greedy" else (0.0, 1.0))
    plain, recorded = engines(models, verifier, **options)
    expected = told(run(plain, given))
    assert told(quietly(recorded, given)) == expected
    once = tapes.replays
    assert told(quietly(recorded, given)) == expected
    assert tapes.made == 2  # one for each view, in the first run alone
    assert tapes.replays == 2 * once > 10


@pytest.mark.parametrize("path", ["token", "block", "coupled", "lossy", "a static tree"])
def test_every_replay_gives_the_numbers_of_its_round(path, models, tapes, monkeypatch):
    monkeypatch.setattr(recorded_rounds, "CHECKED", 10**6)
    verifier, options = PATHS[path]
    _, recorded = engines(models, verifier, analytic=True, **options)
    done = quietly(recorded, requests((0.0, 0.7, 1.3), top_k=9, top_p=0.9))
    assert tapes.replays > 10
    assert all(len(c.expected_acceptance or c.expected_length) == c.target_calls for c in done)


def test_plain_decoding_is_recorded_too(models, tapes):
    plain, recorded = (Engine(models[0], 24, slots=2, compile=how) for how in (False, "round"))
    assert told(quietly(recorded, requests())) == told(run(plain, requests()))
    assert tapes.made == 2


def test_options_of_requests_are_told_apart(models, tapes):
    plain, recorded = engines(models, TokenwiseRejection())
    for options in ({"top_k": 4}, {"top_k": 7}, {"min_p": 0.1, "cut_draft": False}, {"top_k": 4}):
        given = requests(**options)[2:]
        assert told(quietly(recorded, given)) == told(run(plain, given))
    assert tapes.made == 3


def test_a_row_shorter_than_the_draft_needs_is_not_replayed(models, tapes):
    plain, recorded = engines(models, TokenwiseRejection())
    given = [Request((3,), 1.0, max_new_tokens=12, seed=seed, key=str(seed)) for seed in range(2)]
    assert told(quietly(recorded, given)) == told(run(plain, given))
    assert 0 < tapes.replays < recorded.tally.offered / 2


def test_a_second_verifier_records_its_own_on_the_same_caches(models, tapes):
    first, second = (tuple(engines(models, rule))[1] for rule in (GumbelCoupling(), BlockVerification()))
    given = requests()[2:]
    expected = told(run(next(engines(models, BlockVerification())), given))
    quietly(first, given)
    assert second.share(first)
    assert told(quietly(second, given)) == expected
    assert tapes.made == 2


def test_a_recorded_round_is_one_figure_of_time(models, tapes):
    _, recorded = engines(models, TokenwiseRejection())
    for completion in quietly(recorded, requests()):
        assert completion.seconds.draft == 0
        assert completion.seconds.verify > 0
        assert completion.seconds.overhead > 0


# -- what the host does -----------------------------------------------------------------------------------------------


class Outside(TorchDispatchMode):
    """Counts operations that are not those of a replay."""

    def __init__(self, tapes):
        super().__init__()
        self.tapes, self.names = tapes, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not self.tapes.inside and not function.is_view:
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", ["token", "block", "coupled", "a static tree"])
def test_a_recorded_round_is_one_replay_and_one_transfer(path, models, tapes):
    verifier, options = PATHS[path]
    _, engine = engines(models, verifier, **options)
    given = [Request((3, 4, 5, 3, 4), 1.0, max_new_tokens=16, seed=seed, key=str(seed)) for seed in range(2)]
    list(engine.run(given))
    whole, found = engine._round, []

    def counted(*args):
        before = tapes.replays
        with HostReads() as reads, Outside(tapes) as outside:
            whole(*args)
        found.append((tapes.replays - before, reads.count, outside.names))

    engine._round = counted
    list(engine.run(given))
    assert {(replays, reads) for replays, reads, _ in found} == {(1, 1)}
    for _, _, names in found[1:]:  # the first one takes in the rows' parameters as well
        assert names.count("copy_") == 4  # lengths, limits, the number of the round and its noise
        assert set(names) <= {"copy_", "detach_", "lift_fresh"}


# -- what cannot be recorded ------------------------------------------------------------------------------------------


class Reading(TokenwiseRejection):
    """Asks for a value."""

    def verify(self, logp_BNV, draft, noise):
        return super().verify(logp_BNV - logp_BNV[0, 0, 0].item() * 0, draft, noise)


class Sending(TokenwiseRejection):
    """Brings values from the host in every round."""

    def verify(self, logp_BNV, draft, noise):
        return super().verify(logp_BNV + torch.tensor([0.0]), draft, noise)


@pytest.mark.parametrize(
    ("verifier", "drafter", "why"),
    [
        (Reading(), None, "operation not permitted while recording: item"),
        (Sending(), None, "operation not permitted while recording: lift_fresh"),
        (TokenwiseRejection(), SuffixLookup(), "the drafter reads the rows' texts, which no recording knows"),
    ],
)
def test_what_needs_the_host_runs_eagerly_and_says_why(verifier, drafter, why, models, tapes):
    options = {} if drafter is None else {"drafter": drafter, "draft": None}
    plain, recorded = engines(models, verifier, **options)
    with pytest.warns(UserWarning, match=f"^compile: rounds run eagerly, as {why}$") as said:
        found = told(run(recorded, requests()))
    assert found == told(run(plain, requests()))
    assert len(said) == 1
    assert tapes.replays == 0


class Counting(Drafter):
    """Repeats the last token in every other round, and else another one: by a counter that no recording knows."""

    def __init__(self):
        self.rounds = 0

    def propose(self, context):
        self.rounds += 1
        last_B1 = context.token_BT.gather(1, context.length_B[:, None] - 1)
        token_BK = ((last_B1 + self.rounds % 2) % context.vocabulary).expand(-1, context.longest)
        return Draft.certain(token_BK, context.limit_B, context.vocabulary)


def test_a_value_of_the_host_is_found_in_the_next_round(models, tapes, monkeypatch):
    repeating = llama(0, 24, 1, gain=40.0, inner=0.0, context=600)  # at T = 0 it repeats its last token
    given = requests((0.0,))[2:]
    plain, recorded = engines((repeating, None), TokenwiseRejection(), drafter=Counting())
    with pytest.warns(UserWarning, match="as a recorded one gives other numbers: something reads the host"):
        found = run(recorded, given)
    assert [c.tokens for c in found] == [c.tokens for c in run(plain, given)]
    assert tapes.replays <= recorded_rounds.CHECKED
    monkeypatch.setattr(recorded_rounds, "CHECKED", 0)
    _, unchecked = engines((repeating, None), TokenwiseRejection(), drafter=Counting())
    other, _ = engines((repeating, None), TokenwiseRejection(), drafter=Counting())
    assert told(quietly(unchecked, given)) != told(run(other, given))


def test_sizes_beyond_the_most_run_eagerly_and_say_so_once(models, tapes, monkeypatch):
    plain, recorded = engines(models, TokenwiseRejection())
    recorded.reserve(300)
    recorded._rounds._most = 1
    with pytest.warns(UserWarning, match="other sizes run eagerly, as 1 are recorded, which is the most") as said:
        found = told(run(recorded, requests()))
    assert found == told(run(plain, requests()))
    assert len(said) == tapes.made == 1


@pytest.mark.parametrize("length", [ConfidenceThreshold(0.4), Heuristic(), Goodput(0.1, [1.0, 1.1, 1.2])])
def test_lengths_that_differ_by_round_keep_recorded_passes(length, models, tapes):
    _, engine = engines(models, TokenwiseRejection(), length=length)
    assert engine._compile is True


def test_rounds_are_not_recorded_without_a_gpu(models):
    for length in (FixedLength(3), ConfidenceThreshold(0.4)):
        with pytest.raises(UserError, match=r"expected models on a GPU, got them on cpu: set compile to auto$"):
            list(engines(models, TokenwiseRejection(), length=length))
