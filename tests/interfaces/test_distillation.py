import pytest
import torch

from tempspec.core.vocabulary import draft_ids, laws
from tempspec.interfaces import LossContext
from tempspec.plugins.divergences import ForwardKL, TotalVariation, WeightedSum
from tests.built_ins import built_in

DIVERGENCES = built_in("divergences")


def made(name):
    cls = DIVERGENCES[name]
    return cls({"tv": TotalVariation(), "kl": ForwardKL()}) if cls is WeightedSum else cls()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_is_finite_on_the_cells_it_asks_for(name):
    torch.manual_seed(0)
    ids, divergence = torch.tensor([0, 2, 3, 7]), made(name)
    logp, logq = torch.randn(6, 12).log_softmax(-1), torch.randn(6, 4).log_softmax(-1)
    label = draft_ids(torch.arange(6), ids)[None]
    for step in (0, 10):
        context = LossContext(step, 10, label)
        cells = laws(logp, logq, ids, renormalised=divergence.infinite_at_zeros())
        assert bool(divergence(*(law[None] for law in cells), 1.0, context).isfinite().all())


def test_a_divergence_is_restricted_only_where_it_must_be():
    assert {name for name in DIVERGENCES if made(name).infinite_at_zeros()} == {
        *("ForwardKL", "AdaptiveKL", "LKHybrid", "TAID", "TopKCrossEntropy", "LabelCrossEntropy", "LogitDifference"),
        "WeightedSum",
    }
    assert not WeightedSum({"tv": TotalVariation()}).infinite_at_zeros()


def test_asking_changes_no_state():
    divergence = made("TAID")
    before = {name: value.clone() for name, value in divergence.state_dict().items()}
    divergence.infinite_at_zeros()
    assert all(torch.equal(value, before[name]) or value.isnan() for name, value in divergence.state_dict().items())
