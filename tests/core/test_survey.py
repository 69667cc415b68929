import pytest
import torch

from tempspec.core import acceptance
from tempspec.core.survey import Survey, survey
from tempspec.core.vocabulary import coverage, widened

TEMPERATURES = [0.0, 0.5, 1.0, 1.5]
GENERATOR = torch.Generator().manual_seed(0)
LOGITS_P, LOGITS_Q = torch.randn(13, 50, generator=GENERATOR), torch.randn(13, 50, generator=GENERATOR)
ELEMENTS = pytest.mark.parametrize("elements", [1, 2000, 1 << 20])


def functions(logits_p, logits_q):
    """What the functions that temper anew say."""
    return Survey(
        acceptance.acceptance_grid(logits_p, logits_q, TEMPERATURES, TEMPERATURES),
        acceptance.agreement_grid(logits_p, logits_q, TEMPERATURES, TEMPERATURES).diagonal(dim1=1, dim2=2),
        acceptance.argmax_acceptance(logits_p, logits_q, TEMPERATURES),
        acceptance.entropy(logits_p, TEMPERATURES),
    )


@pytest.mark.parametrize("heads", [(50, 50), (50, 40), (40, 50)])
@ELEMENTS
def test_a_survey_equals_the_functions_that_it_joins(heads, elements, monkeypatch):
    monkeypatch.setattr(acceptance, "_CPU_ELEMENTS", elements)
    logits_p, logits_q = LOGITS_P[:, : heads[0]], LOGITS_Q[:, : heads[1]]
    found, expected = survey(logits_p, logits_q, TEMPERATURES), functions(logits_p, logits_q)
    assert found.covered_NA is None
    torch.testing.assert_close(found.values(), expected.values())


@ELEMENTS
def test_tokens_that_share_positions_are_as_with_their_own(elements, monkeypatch):
    monkeypatch.setattr(acceptance, "_CPU_ELEMENTS", elements)
    index = torch.randint(13, (40,), generator=GENERATOR).sort().values
    drafts = torch.randn(40, 50, generator=GENERATOR)
    found, expected = survey(LOGITS_P, drafts, TEMPERATURES, index_N=index), functions(LOGITS_P[index], drafts)
    torch.testing.assert_close(found.values(), expected.values())
    wrong = survey(LOGITS_P, drafts, TEMPERATURES, index_N=index.flip(0))
    assert not torch.allclose(wrong.acceptance_NAD, expected.acceptance_NAD)


@ELEMENTS
@pytest.mark.parametrize("shared", [False, True])
def test_a_draft_of_some_ids_gives_the_others_nothing(elements, shared, monkeypatch):
    monkeypatch.setattr(acceptance, "_CPU_ELEMENTS", elements)
    index = torch.arange(13).repeat_interleave(3) if shared else torch.arange(13)
    ids = torch.randperm(50, generator=GENERATOR)[:20].sort().values
    drafts = torch.randn(len(index), 20, generator=GENERATOR)
    found = survey(LOGITS_P, drafts, TEMPERATURES, index_N=index if shared else None, ids_R=ids)
    expected = functions(LOGITS_P[index], widened(drafts, ids, 50))
    torch.testing.assert_close(found.values()[:4], expected.values())
    torch.testing.assert_close(found.covered_NA, coverage(LOGITS_P[index], ids, TEMPERATURES))
    assert 0 < (found.covered_NA[:, 0] == 0).sum() < len(index)  # argmaxes that the draft knows, and others


def test_a_survey_of_some_tokens_is_that_part_of_it():
    ids = torch.arange(0, 50, 2)
    whole = survey(LOGITS_P, LOGITS_Q[:, ids], TEMPERATURES, ids_R=ids)
    for tokens in (slice(3, 9), torch.tensor([7, 2]), torch.arange(13) % 2 == 0):
        part = survey(LOGITS_P[tokens], LOGITS_Q[tokens][:, ids], TEMPERATURES, ids_R=ids)
        torch.testing.assert_close(whole.of(tokens).values(), part.values())


def test_a_survey_of_nothing_is_empty():
    assert survey(LOGITS_P[:0], LOGITS_Q[:0], TEMPERATURES).acceptance_NAD.shape == (0, 4, 4)
    none = torch.zeros(0, dtype=torch.int64)
    ids = torch.arange(7)
    assert survey(LOGITS_P, LOGITS_Q[:0, :7], TEMPERATURES, index_N=none, ids_R=ids).covered_NA.shape == (0, 4)


@pytest.mark.parametrize("temperatures", [[0.0], [1.0], [1.0, 0.0, 1.0]])
def test_any_temperatures_are_surveyed(temperatures):
    found = survey(LOGITS_P, LOGITS_Q, temperatures)
    torch.testing.assert_close(
        found.acceptance_NAD, acceptance.acceptance_grid(LOGITS_P, LOGITS_Q, temperatures, temperatures)
    )
