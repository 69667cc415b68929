"""How often a round asks the device for a value, which makes a host wait for a GPU.

Counted where there is no GPU: every way in which Python reads a tensor. What is read of a tensor that has come over
already costs nothing, and functions that read on a CPU alone, and say so, are left out.
"""

import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from tempspec.interfaces import Request
from tempspec.plugins.drafters import PromptLookup
from tempspec.plugins.lengths import ConfidenceThreshold, FixedLength
from tempspec.plugins.lossy_verifiers import Lenience
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import RecursiveRejection, Traversal
from tempspec.plugins.verifiers import BlockVerification, GumbelCoupling, TokenwiseRejection
from tests.decoding.engines import speculative
from tests.tiny import llama

READS = {"tolist", "item", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}
ON_A_CPU_ALONE = {"rows_of", "coupled_argmax", "optimum"}


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
        if read and not over and sys._getframe(1).f_code.co_name not in ON_A_CPU_ALONE:
            self.count += 1
        if over or function is torch.Tensor.cpu:
            self.host |= self._storages(made)  # kept alive: no other tensor gets their place
        return made

    @staticmethod
    def _storages(values):
        tensors = [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]
        return {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}


def reads_a_round(engine):
    """The most reads of any round, its sampling parameters known; rounds of the same rows."""
    requests = [Request((3, 4, 5, 3, 4), 1.0, max_new_tokens=24, seed=seed, key=str(seed)) for seed in range(3)]
    list(engine.run(requests))
    whole, found = engine._round, []

    def counted(*args):
        with HostReads() as reads:
            whole(*args)
        found.append(reads.count)

    engine._round = counted
    list(engine.run(requests))
    return max(found)


PATHS = {
    "token": (1, TokenwiseRejection(), {}),
    "block": (1, BlockVerification(), {}),
    "coupled": (1, GumbelCoupling(), {}),
    "lossy": (1, Lenience(0.5), {}),
    "a rule looks at every token but the last": (3, TokenwiseRejection(), {"length": ConfidenceThreshold(0.01, 3)}),
    "the longest match": (2, TokenwiseRejection(), {"drafter": PromptLookup(), "draft": None}),
    "the shape of a static tree": (2, RecursiveRejection(), {"drafter": StaticTree([2, 2, 1])}),
    "the shape of a dynamic tree": (2, Traversal(), {"drafter": DynamicTree(3, 3, 6)}),
}


@pytest.fixture(scope="module")
def models():
    return llama(0, 24, 2, gain=8.0), llama(1, 24, 1, gain=8.0)


@pytest.mark.parametrize("path", PATHS)
def test_a_round_reads_the_device_so_often(path, models):
    reads, verifier, options = PATHS[path]
    target, draft = models
    options = {"draft": draft, "length": FixedLength(3)} | options
    assert reads_a_round(speculative(target, verifier=verifier, slots=3, **options)) == reads


@pytest.mark.parametrize("path", [path for path in PATHS if "tree" not in path])
def test_closed_forms_of_a_chain_come_with_the_counts(path, models):
    reads, verifier, options = PATHS[path]
    target, draft = models
    options = {"draft": draft, "length": FixedLength(3)} | options
    assert reads_a_round(speculative(target, verifier=verifier, slots=3, analytic=True, **options)) == reads


def test_a_read_more_is_counted(models):
    class Curious(TokenwiseRejection):
        def verify(self, logp_BKV, draft, noise):
            assert bool(logp_BKV.isfinite().any())
            return super().verify(logp_BKV, draft, noise)

    target, draft = models
    assert reads_a_round(speculative(target, draft, Curious(), slots=3)) == 2
