import torch
from hypothesis import given
from hypothesis import strategies as st

from tempspec.core.acceptance import acceptance_grid, overlap
from tempspec.core.divergences import forward_kl, negative_log_acceptance, reverse_kl, total_variation
from tempspec.core.vocabulary import (
    coverage,
    differences,
    draft_ids,
    from_differences,
    laws,
    members,
    most_frequent,
    widened,
)

TEMPERATURES = [0.0, 0.5, 1.0, 1.5]


def pair(vocabulary=12, size=5, seed=0):
    """A target's logits, a draft's over some ids, and these ids."""
    torch.manual_seed(seed)
    ids = torch.randperm(vocabulary)[:size].sort().values
    return 2 * torch.randn(7, vocabulary).double(), 2 * torch.randn(7, size).double(), ids


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_no_id_that_is_left_out_is_more_frequent(counts, data):
    size = data.draw(st.integers(1, len(counts)))
    ids = most_frequent(torch.tensor(counts), size).tolist()
    assert ids == sorted(set(ids))
    assert len(ids) == size
    left = [count for token, count in enumerate(counts) if token not in ids]
    assert min(counts[token] for token in ids) >= max(left, default=0)


@given(st.sets(st.integers(0, 30), min_size=1))
def test_differences_members_and_draft_ids_are_inverse(ids):
    ids_R = torch.tensor(sorted(ids))
    assert torch.equal(from_differences(differences(ids_R)), ids_R)
    assert members(ids_R, 31).nonzero().flatten().tolist() == sorted(ids)
    own = draft_ids(torch.arange(31), ids_R)
    assert [sorted(ids).index(token) if token in ids else len(ids) for token in range(31)] == own.tolist()


def test_the_drafts_law_is_its_own_with_exact_zeros_elsewhere():
    _, z_q, ids = pair()
    law = widened(z_q, ids, 12).softmax(-1)
    torch.testing.assert_close(law[:, ids], z_q.softmax(-1))
    assert bool((law[:, ~members(ids, 12)] == 0).all())


def test_no_draft_is_accepted_more_often_than_its_ids_cover():
    z_p, z_q, ids = pair()
    covered = coverage(z_p, ids, TEMPERATURES)
    found = acceptance_grid(z_p, widened(z_q, ids, 12), TEMPERATURES, TEMPERATURES)
    assert bool((found <= covered[..., None] + 1e-12).all())
    expected = torch.stack([(z_p / T).softmax(-1)[:, ids].sum(-1) for T in TEMPERATURES[1:]], 1)
    torch.testing.assert_close(covered[:, 1:], expected)
    assert torch.equal(covered[:, 0], members(ids, 12)[z_p.argmax(-1)].double())


def test_a_renormalised_target_flatters_the_draft():
    z_p, z_q, ids = pair()
    logp, logq = z_p.log_softmax(-1), z_q.log_softmax(-1)
    honest = overlap(*laws(logp, logq, ids, renormalised=False))
    torch.testing.assert_close(honest, overlap(logp, widened(logq, ids, 12)))
    assert bool((overlap(*laws(logp, logq, ids, renormalised=True)) > honest).all())


def test_cells_give_what_the_whole_vocabulary_gives():
    z_p, z_q, ids = pair()
    logp, logq = z_p.log_softmax(-1), z_q.log_softmax(-1)
    cells = laws(logp, logq, ids, renormalised=False)
    for divergence in (total_variation, reverse_kl, negative_log_acceptance):
        torch.testing.assert_close(divergence(*cells), divergence(logp, widened(logq, ids, 12)))
    assert bool(forward_kl(*cells).isinf().all())
    assert bool(forward_kl(*laws(logp, logq, ids, renormalised=True)).isfinite().all())
