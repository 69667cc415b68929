import pytest
import torch

from tempspec.core.acceptance import Truncation
from tempspec.decoding.engine import Engine
from tempspec.decoding.noise import RoundNoise
from tempspec.decoding.rounds import RoundStart, draft_context
from tempspec.decoding.slots import ActiveRow, Slots
from tempspec.interfaces import Completion, Request
from tempspec.models.draft_steps import Extent
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import TokenwiseRejection

CUT = Truncation(top_k=3, top_p=0.9, min_p=0.1)


def request(**options):
    return Request((1, 2), 0.8, top_k=CUT.top_k, top_p=CUT.top_p, min_p=CUT.min_p, max_new_tokens=20, **options)


def test_each_row_says_whether_its_draft_is_cut():
    slots = Slots(torch.zeros(2, 8, dtype=torch.int64))
    slots.rows = [ActiveRow(one, Completion(one), 2, 8, 2) for one in (request(), request(cut_draft=False))]
    rest = torch.zeros(2, 2, dtype=torch.int64), torch.tensor([2, 2]), torch.tensor([1, 1])
    noise = RoundNoise(*(torch.zeros(2, dtype=torch.int64) for _ in range(3)))
    start = RoundStart(slots.laws(), noise, *rest, Extent(2, 2, 0, 1), FixedLength(1), list)
    logits_BV = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)) * 3
    law_BV = draft_context(start, 1, 12, None, coupled=False).law(logits_BV[:, None])[:, 0].exp()
    torch.testing.assert_close(law_BV[0], CUT.laws(logits_BV[:1], [0.8])[0, 0])
    torch.testing.assert_close(law_BV[1], (logits_BV[1] / 0.8).softmax(-1))
    assert (law_BV[0] == 0).any()


@pytest.mark.parametrize(
    ("conditioned", "first"), [(False, {0: 0, 1: 0, 2: 2, 3: 0}), (True, {0: 0, 1: 1, 2: 2, 3: 0})]
)
def test_rows_begin_alike_if_both_models_read_them_alike(conditioned, first):
    slots = Slots(torch.zeros(4, 8, dtype=torch.int64))
    requests = [Request((1, 2), 0.5), Request((1, 2), 0.5, 1.0), Request((1, 3), 0.5), Request((1, 2), 1.0, 0.5)]
    slots.rows = [ActiveRow(one, Completion(one), 2, 8, 2) for one in requests]
    assert slots.first_alike(range(4), conditioned=conditioned) == first


def test_an_uncut_draft_leaves_the_texts_law_alone(wide_pair):
    """What it drafts outside of the target's cut is rejected, and nothing else changes: no token outside is emitted."""
    target, draft = wide_pair
    parts = {"verifier": TokenwiseRejection(), "drafter": CausalLM(), "length": FixedLength(3)}
    engine = Engine(target, 40, draft=draft, slots=2, **parts)
    done = list(engine.run([request(seed=seed, cut_draft=seed % 2 == 0) for seed in range(8)]))
    for one in done:
        text = torch.tensor([[1, 2, *one.tokens]])
        logits_NV = target(text).logits[0, 1:-1, :40]
        kept_NV = CUT.laws(logits_NV, [0.8])[0] > 0
        assert kept_NV.gather(1, text[0, 2:, None]).all()
    rate = [sum(sum(one.accepted) for one in done if one.request.cut_draft is cut) for cut in (True, False)]
    assert rate[0] != rate[1]
