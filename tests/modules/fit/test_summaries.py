import itertools

import pytest
import torch

from tempspec.core.divergences import entropy, forward_kl
from tempspec.modules.fit.summaries import summaries
from tempspec.modules.outputs import LogitPairs
from tests.modules.fit.test_objective import VOCABULARY, project, sides


@pytest.mark.parametrize(
    "needs", [set(each) for n in range(4) for each in itertools.combinations(["entropy", "loss", "peaks"], n)]
)
def test_summaries_are_computed_where_asked(needs):
    target, draft = sides()
    z_p, z_q = project(target), project(draft)
    got = summaries(LogitPairs(target, draft, VOCABULARY, 6), frozenset(needs))
    expected = (
        ("entropy", entropy(z_p.log_softmax(-1))),
        ("loss", forward_kl(z_p.log_softmax(-1), z_q.log_softmax(-1))),
        ("peaks", z_p.amax(-1) - z_p.mean(-1)),
        ("peaks", z_q.amax(-1) - z_q.mean(-1)),
    )
    for value, (name, right) in zip(got, expected, strict=True):
        if name in needs:
            torch.testing.assert_close(value, right)
        else:
            assert value is None
