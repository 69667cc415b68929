"""How often a round asks the device for a value, which makes a host wait for a GPU.

Counted where there is no GPU: every way in which Python reads a tensor. What is read of a tensor that has come over
already costs nothing. Everything runs as if reading were not free, as `tempspec.core.hosts` says it is on a CPU.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tempspec.core import hosts
from tempspec.interfaces import Request
from tempspec.plugins.drafters import FEW_ROWS, PromptLookup, SuffixLookup
from tempspec.plugins.lengths import ConfidenceThreshold, FixedLength
from tempspec.plugins.lossy_verifiers import Lenience
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import KSequential, RecursiveRejection, Traversal
from tempspec.plugins.verifiers import BlockVerification, GumbelCoupling, TokenwiseRejection
from tests.decoding.engines import speculative
from tests.tiny import llama

READS = {"tolist", "item", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(hosts, "reads_free", lambda value: False)


class HostReads(TorchFunctionMode):
    """Counts what is read of tensors that are not the host's yet."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.host = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        read, given = getattr(function, "__name__", "") in READS, self._storages((args, kwargs))
        over = bool(given) and given.keys() <= self.host.keys()
        self.count += read and not over
        if over or function is torch.Tensor.cpu:
            self.host |= self._storages(made)  # kept alive: no other tensor gets their place
        return made

    @staticmethod
    def _storages(values):
        return {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors_in(values)}


def tensors_in(value):
    """Those in nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


def reads_a_round(engine, rows=3):
    """The most reads of any round with all rows, its sampling parameters known."""
    requests = [Request((3, 4, 5, 3, 4), 1.0, max_new_tokens=24, seed=seed, key=str(seed)) for seed in range(rows)]
    list(engine.run(requests))
    whole, found = engine._round, []

    def counted(slots, *args):
        full = len(slots.batch) == rows
        with HostReads() as reads:
            whole(slots, *args)
        found.append(reads.count * full)

    engine._round = counted
    list(engine.run(requests))
    return max(found)


PATHS = {
    "token": (TokenwiseRejection(), {}),
    "block": (BlockVerification(), {}),
    "coupled": (GumbelCoupling(), {}),
    "lossy": (Lenience(0.5), {}),
    "prompt lookup": (TokenwiseRejection(), {"drafter": PromptLookup(), "draft": None}),
    "suffix lookup": (TokenwiseRejection(), {"drafter": SuffixLookup(), "draft": None}),
    "a static tree": (RecursiveRejection(), {"drafter": StaticTree([2, 2, 1])}),
    "a static tree from the leaves": (Traversal(), {"drafter": StaticTree([2, 2, 1])}),
    "a static tree of independent nodes": (KSequential(), {"drafter": StaticTree([2, 2], siblings="independent")}),
    "a dynamic tree": (RecursiveRejection(), {"drafter": DynamicTree(3, 3, 6)}),
    "a dynamic tree from the leaves": (Traversal(), {"drafter": DynamicTree(3, 3, 6)}),
}


@pytest.fixture(scope="module")
def models():
    return llama(0, 24, 2, gain=8.0), llama(1, 24, 1, gain=8.0)


@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_round_reads_the_device_once(path, analytic, models):
    verifier, options = PATHS[path]
    target, draft = models
    options = {"draft": draft, "length": FixedLength(3)} | options
    assert reads_a_round(speculative(target, verifier=verifier, slots=3, analytic=analytic, **options)) == 1


@pytest.mark.parametrize(("rows", "reads"), [(FEW_ROWS, 3), (FEW_ROWS + 1, 1)])
def test_whether_all_stopped_is_asked_where_it_is_likely(rows, reads, models):
    target, draft = models
    rule = ConfidenceThreshold(0.01, 3)
    engine = speculative(target, draft, TokenwiseRejection(), length=rule, slots=rows)
    assert reads_a_round(engine, rows) == reads


def test_a_read_more_is_counted(models):
    class Curious(TokenwiseRejection):
        def verify(self, logp_BKV, draft, noise):
            assert bool(logp_BKV.isfinite().any())
            return super().verify(logp_BKV, draft, noise)

    target, draft = models
    assert reads_a_round(speculative(target, draft, Curious(), slots=3)) == 2
