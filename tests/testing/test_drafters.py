from dataclasses import replace

import pytest
import torch

from tempspec.interfaces import Draft, Drafter
from tempspec.plugins.drafters import CausalLM, PromptLookup
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.testing import ConformanceError, check_drafter
from tempspec.testing.drafters import HashModel


class DropsUnlikely(CausalLM):
    """Looks at the last token of a draft and leaves it out when it was unlikely: the anticipation rule broken."""

    def propose(self, context):
        draft = super().propose(context)
        if draft.token_BK.shape[1] == 0:
            return draft
        last_B = (draft.length_B - 1).clamp(min=0)
        row_B = torch.arange(len(last_B))
        unlikely_B = draft.logq_BKV[row_B, last_B, draft.token_BK[row_B, last_B]] < -1.5
        return replace_length(draft, torch.where(unlikely_B & (draft.length_B > 0), last_B, draft.length_B))


def replace_length(draft, length_B):
    return Draft(draft.token_BK, length_B, draft.logq_BKV)


class WrongLaw(CausalLM):
    """Hands on a law at another temperature than it sampled at."""

    def propose(self, context):
        draft = super().propose(context)
        return Draft(draft.token_BK, draft.length_B, (draft.logq_BKV / 1.3).log_softmax(-1))


class IgnoresLimit(CausalLM):
    def propose(self, context):
        return super().propose(replace(context, limit_B=torch.full_like(context.limit_B, context.longest)))


class IgnoresRule(CausalLM):
    def propose(self, context):
        return super().propose(
            replace(context, rule=type("Free", (type(context.rule),), {"proceed": lambda *_: None})(9, False))
        )


class ReadsBeyond(PromptLookup):
    """Takes the whole buffer for the text."""

    def propose(self, context):
        return super().propose(replace(context, length_B=torch.full_like(context.length_B, context.token_BT.shape[1])))


class Unnormalised(CausalLM):
    def propose(self, context):
        draft = super().propose(context)
        return Draft(draft.token_BK, draft.length_B, draft.logq_BKV - 0.5)


class OwnRandomness(Drafter):
    def propose(self, context):
        token_BK = torch.randint(context.vocabulary, (len(context.length_B), context.longest))
        return Draft.certain(token_BK, context.limit_B, context.vocabulary)


class CallsForNothing(CausalLM):
    def propose(self, context):
        context.model.catch_up(context.token_BT, context.length_B)
        return super().propose(context)


class RubbishIds(CausalLM):
    """Marks what is behind the length with -1, which no law can be gathered at."""

    def propose(self, context):
        draft = super().propose(context)
        behind_BK = torch.arange(draft.token_BK.shape[1]) >= draft.length_B[:, None]
        return Draft(draft.token_BK.masked_fill(behind_BK, -1), draft.length_B, draft.logq_BKV)


class SaysChosen(CausalLM):
    """Draws, and says that it did not."""

    def propose(self, context):
        draft = super().propose(context)
        draft.chosen = True
        return draft


class SaysAnotherShape(StaticTree):
    def propose(self, context):
        draft = super().propose(context)
        draft.shape = (-1,) * len(draft.shape or ())
        return draft


class SaysShallow(DynamicTree):
    def propose(self, context):
        draft = super().propose(context)
        draft.deepest = 1
        return draft


@pytest.mark.parametrize(
    ("drafter", "law"),
    [
        (DropsUnlikely(), "exactly the law that is handed on"),
        (WrongLaw(), "exactly the law that is handed on"),
        (IgnoresLimit(), "no path is longer than the limit"),
        (IgnoresRule(), "stops after the token"),
        (ReadsBeyond(), "nothing after a row's length is read"),
        (Unnormalised(), "laws add up to 1"),
        (OwnRandomness(), "equal noise gives equal drafts"),
        (CallsForNothing(), "the model is not called"),
        (RubbishIds(), "ids lie in 0..V-1"),
        (SaysChosen(), "a draft that says `chosen` drew nothing"),
        (SaysAnotherShape(siblings="distinct"), "`shape` is every row's parents"),
        (SaysShallow(), "no path is longer than `deepest`"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Drafter) else None,
)
def test_the_kit_refuses(drafter, law):
    with pytest.raises(ConformanceError, match=law):
        check_drafter(drafter)


def test_the_hash_models_law_is_of_the_text_however_it_is_fed():
    text = torch.tensor([[3, 1, 4], [3, 2, 4]])
    model = HashModel(8)
    whole = model.catch_up(text, torch.tensor([3, 3]))
    model.catch_up(text, torch.tensor([2, 2]))
    assert torch.equal(model.step(text[:, 2]), whole)
    assert (whole[0] != whole[1]).all()
    assert not torch.equal(HashModel(8, seed=1).catch_up(text, torch.tensor([3, 3])), whole)
