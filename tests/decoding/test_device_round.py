"""What lies between two looks of the host could be recorded: it reads nothing, and no size depends on a value."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tempspec.core import hosts
from tempspec.decoding.device_round import DeviceRound
from tempspec.interfaces import Request
from tempspec.plugins.drafters import PromptLookup
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import RecursiveRejection, Traversal
from tempspec.plugins.verifiers import BlockVerification, GreedyMatch, GumbelCoupling, TokenwiseRejection
from tests.decoding.engines import speculative
from tests.decoding.test_host_reads import HostReads
from tests.tiny import llama

FORBIDDEN = {"nonzero", "masked_select", "_unique2", "_local_scalar_dense"}


class Steps(TorchDispatchMode):
    """What a recording would hold: every operation with the shapes and types of what it makes."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        some = made if isinstance(made, (tuple, list)) else (made,)
        shapes = tuple((tuple(value.shape), value.dtype) for value in some if isinstance(value, torch.Tensor))
        self.made.append((str(function), shapes))
        return made


def recorded(engine, monkeypatch, requests):
    """By what the host knows of a round: the operations of all such rounds, and how often any of them read."""
    whole, found, reads = DeviceRound.run, {}, []

    def run(rounds, start):
        shortest, longest, lacking, drafted = start.extent
        known = len(start.length_B), longest // 64, lacking, drafted, shortest >= lacking
        with HostReads() as counted, Steps() as steps:
            sent = whole(rounds, start)
        found.setdefault(known, []).append(steps.made)
        reads.append(counted.count)
        return sent

    monkeypatch.setattr(hosts, "reads_free", lambda value: False)
    monkeypatch.setattr(DeviceRound, "run", run)
    list(engine.run(requests))
    return found, max(reads)


def requests(temperature):
    return [Request((3, 4, 5, 3, 4), temperature, max_new_tokens=24, seed=seed, key=str(seed)) for seed in range(3)]


PATHS = {
    "token": (TokenwiseRejection(), {}),
    "block": (BlockVerification(), {}),
    "coupled": (GumbelCoupling(), {}),
    "greedy": (GreedyMatch(), {}),
    "prompt lookup": (TokenwiseRejection(), {"drafter": PromptLookup(), "draft": None}),
    "a static tree": (RecursiveRejection(), {"drafter": StaticTree([2, 2, 1])}),
    "a static tree from the leaves": (Traversal(), {"drafter": StaticTree([2, 2, 1])}),
    "a dynamic tree": (RecursiveRejection(), {"drafter": DynamicTree(3, 3, 6)}),
    "a dynamic tree from the leaves": (Traversal(), {"drafter": DynamicTree(3, 3, 6)}),
}


@pytest.fixture(scope="module")
def models():
    return llama(0, 24, 1, gain=8.0), llama(1, 24, 1, gain=8.0)


@pytest.mark.parametrize("path", PATHS)
def test_rounds_of_one_size_are_the_same_operations(path, models, monkeypatch):
    verifier, options = PATHS[path]
    target, draft = models
    engine = speculative(target, verifier=verifier, slots=3, **({"draft": draft} | options))
    list(engine.run(requests(0.0 if path == "greedy" else 1.0)))  # what a device is told once
    found, reads = recorded(engine, monkeypatch, requests(0.0 if path == "greedy" else 1.0))
    assert reads == 0
    assert max(map(len, found.values())) > 1
    for rounds in found.values():
        assert all(steps == rounds[0] for steps in rounds)
    names = {step.removeprefix("aten.").partition(".")[0] for steps, *_ in found.values() for step, _ in steps}
    assert names.isdisjoint(FORBIDDEN)


class Curious(TokenwiseRejection):
    """Works on the rows that accept something, whose number the values decide."""

    def verify(self, logp_BKV, draft, noise):
        verdict = super().verify(logp_BKV, draft, noise)
        logp_BKV[verdict.accepted_B > 0].exp()
        return verdict


def test_a_size_that_values_decide_is_found(models, monkeypatch):
    target, draft = models
    engine = speculative(target, draft, Curious(), slots=3)
    found, _ = recorded(engine, monkeypatch, requests(1.0))
    assert any(steps != rounds[0] for rounds in found.values() for steps in rounds)
