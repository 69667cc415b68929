import itertools

import pytest
import torch

from tempspec.core.trees import level_parents
from tempspec.errors import UserError
from tempspec.plugins.drafters import EarlyExit
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.testing import ConformanceError, check_drafter
from tempspec.testing.drafters import HashModel

from .test_drafters import context

SIBLINGS = ("independent", "distinct", "top", "greedy")
DRAFTERS = {
    **{siblings: StaticTree([2, 2], siblings=siblings) for siblings in SIBLINGS},
    "paths": StaticTree([4, 1, 1], siblings="independent"),
    "irregular": StaticTree(parents=[-1, -1, -1, 0, 0, 2, 4], siblings="greedy"),
    "more children than tokens": StaticTree([7], siblings="distinct"),
    "dynamic": DynamicTree(3, 3, 7),
    "all of a beam": DynamicTree(2, 4, 50),
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_trees_conform(name):
    check_drafter(DRAFTERS[name])


def test_levels_and_parents_say_the_same():
    assert StaticTree([2, 1]).parents == StaticTree(parents=[-1, -1, 0, 1]).parents == level_parents([2, 1])


def test_a_level_costs_one_call_and_leaves_are_not_fed():
    model = HashModel(10)
    StaticTree([3, 2, 2]).propose(context([[1, 2]], [3], FixedLength(3), model))
    assert model.calls == 3


def test_the_beam_is_the_best_of_all_paths():
    """With a beam as wide as the vocabulary nothing is cut before the end: the best nodes of the full tree."""
    vocabulary, depth = 3, 3
    text = context([[1, 2]], [depth], FixedLength(depth), HashModel(vocabulary), vocabulary=vocabulary)
    draft = DynamicTree(width=27, depth=depth, nodes=8).propose(text)
    paths = {(): 0.0}
    for length in range(1, depth + 1):
        for chain in itertools.product(range(vocabulary), repeat=length):
            model = HashModel(vocabulary)
            logits = model.catch_up(torch.tensor([[1, 2, *chain[:-1]]]), torch.tensor([1 + length]))
            paths[chain] = paths[chain[:-1]] + float(logits[0].double().log_softmax(-1)[chain[-1]])
    del paths[()]
    found = []
    for token, parent in zip(draft.token_BK[0].tolist(), draft.parent_BK[0].tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert set(found) == set(sorted(paths, key=paths.get, reverse=True)[:8])


class Forgetful(StaticTree):
    """Hands on q where it drew without replacement."""

    def propose(self, given):
        draft = super().propose(given)
        if draft.token_BK.shape[1] > 1:
            draft.logq_BKV[:, 1] = draft.logq_BKV[:, 0]
        return draft


def test_the_kit_refuses_a_tree_of_laws_not_drawn_from():
    with pytest.raises(ConformanceError, match="exactly the law that is handed on"):
        check_drafter(Forgetful([2], siblings="distinct"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StaticTree([2], siblings="other"), "siblings must be one of"),
        (lambda: StaticTree([2], parents=[-1]), "expected levels or parents, got both"),
        (lambda: StaticTree([]), "levels must hold numbers of children"),
        (lambda: StaticTree([2, 0]), "levels must hold numbers of children"),
        (lambda: StaticTree(parents=[-1, 1]), "parents must name an earlier node"),
        (lambda: StaticTree(parents=[-1, 0, -1]), "level by level"),
        (lambda: DynamicTree(width=0), "width must be 1 or more"),
        (lambda: DynamicTree(nodes=0), "nodes must be 1 or more"),
        (lambda: EarlyExit(0), "layers must be 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("drafter", [StaticTree(), DynamicTree()], ids=lambda drafter: type(drafter).__name__)
def test_a_tree_without_a_model_is_refused(drafter):
    with pytest.raises(ValueError, match="needs a draft model"):
        drafter.propose(context([[1]], [2], FixedLength(2)))
