"""Laws of siblings that share their beginnings are the laws that are stated one by one."""

import pytest
import torch

from tempspec.core.siblings import SiblingLaws, cleaned
from tempspec.core.tree_verification import is_drawn, sibling_law

ROWS, VOCABULARY = 100, 6


def certain(logits):
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True), -torch.inf).log_softmax(-1)


def truncated(logits):
    return logits.masked_fill(logits < logits.topk(3).values[..., -1:], -torch.inf).log_softmax(-1)


LAWS = {
    "whole": lambda logits: logits.log_softmax(-1),
    "sharp": lambda logits: (500 * logits).log_softmax(-1),
    "truncated": truncated,
    "certain": certain,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("count", [1, 2, 4, VOCABULARY, VOCABULARY + 2])
@pytest.mark.parametrize("siblings", ["independent", "distinct", "top", "greedy"])
def test_every_rank_has_the_law_that_is_stated(siblings, count, law, dtype):
    logits = torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logq, generator = LAWS[law](logits), torch.Generator().manual_seed(1)
    laws, taken = SiblingLaws(logq, logits, count, siblings), torch.zeros(ROWS, VOCABULARY, dtype=torch.bool)
    for rank in range(count):
        stated, found = sibling_law(logq, logits, taken, rank, count, siblings), cleaned(laws.law(rank).clone())
        if rank < VOCABULARY:  # then all tokens are taken
            torch.testing.assert_close(found, stated)
        assert torch.equal(found.exp().sum(-1) > 0.99, torch.ones(ROWS, dtype=torch.bool))
        token = torch.multinomial(found.exp(), 1, generator=generator)[:, 0]
        if is_drawn(siblings, rank):
            laws.take(token)
        elif rank < VOCABULARY:
            assert torch.equal(laws.chosen(rank), token)
        taken = taken.scatter(1, token[:, None], True)


def test_a_child_that_was_not_taken_is_drawn_again():
    logq = torch.tensor([0.5, 0.3, 0.2]).log()
    laws = SiblingLaws(logq, logq, 2, "distinct")
    torch.testing.assert_close(laws.law(1), logq)
