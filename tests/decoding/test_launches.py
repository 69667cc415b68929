"""How many operations a round launches outside the models: on a GPU each costs a launch, whatever its size.

Counted on a CPU, with the branches that a GPU takes.
"""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from tempspec.core import hosts
from tempspec.interfaces import Request
from tempspec.models.ragged import RaggedModel
from tempspec.plugins.drafters import PromptLookup
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import KSequential, RecursiveRejection, Traversal
from tempspec.plugins.verifiers import BlockVerification, GumbelCoupling, TokenwiseRejection
from tests.decoding.engines import speculative
from tests.tiny import llama

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh", "_local_scalar_dense"}
"""Operations without a kernel; views are left out as well."""


class Launches(TorchDispatchMode):
    """Counts operations that a GPU would launch a kernel for, except in the models."""

    def __init__(self):
        super().__init__()
        self.count, self.inside = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        free = function.is_view or function.overloadpacket.__name__ in FREE or "view" in function.name()
        self.count += not free and not self.inside
        return function(*args, **(kwargs or {}))


def launches_a_round(engine, monkeypatch):
    """The most of any round."""
    requests = [Request((3, 4, 5, 3, 4), 1.0, max_new_tokens=16, seed=seed, key=str(seed)) for seed in range(4)]
    whole, call, found, modes = engine._round, RaggedModel._call, [], []

    def outside(*args, **options):
        for mode in modes:
            mode.inside += 1
        try:
            return call(*args, **options)
        finally:
            for mode in modes:
                mode.inside -= 1

    def counted(*args):
        with Launches() as mode:
            modes[:] = [mode]
            whole(*args)
        found.append(mode.count)

    monkeypatch.setattr(hosts, "reads_free", lambda value: False)
    list(engine.run(requests[:1]))  # what a device is told once
    monkeypatch.setattr(RaggedModel, "_call", outside)
    engine._round = counted
    list(engine.run(requests))
    return max(found)


PATHS = {
    "token": (250, TokenwiseRejection(), {}),
    "block": (250, BlockVerification(), {}),
    "coupled": (250, GumbelCoupling(), {}),
    "prompt lookup": (250, TokenwiseRejection(), {"drafter": PromptLookup(), "draft": None}),
    "a static tree": (400, RecursiveRejection(), {"drafter": StaticTree([4, 2, 2]), "length": FixedLength(3)}),
    "a dynamic tree": (400, Traversal(), {"drafter": DynamicTree(4, 4, 16)}),
    "a dynamic tree from the root": (400, RecursiveRejection(), {"drafter": DynamicTree(4, 4, 16)}),
    "a static tree from the leaves": (400, Traversal(), {"drafter": StaticTree([4, 2, 2]), "length": FixedLength(3)}),
    "a static tree by K-SEQ": (
        400,
        KSequential(),
        {"drafter": StaticTree([4, 2, 2], siblings="independent"), "length": FixedLength(3)},
    ),
}


@pytest.fixture(scope="module")
def models():
    return llama(0, 24, 1, gain=8.0), llama(1, 24, 1, gain=8.0)


@pytest.mark.parametrize("path", PATHS)
def test_a_round_launches_no_more_than(path, models, monkeypatch):
    most, verifier, options = PATHS[path]
    target, draft = models
    options = {"draft": draft, "length": FixedLength(4)} | options
    found = launches_a_round(speculative(target, verifier=verifier, slots=4, **options), monkeypatch)
    assert most / 3 < found <= most
