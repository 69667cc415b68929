import pytest
import torch

from tempspec.core.unrolled import UnrolledKeys, visible


def dense(query, keys, values, mask):
    """Attention by its definition, all heads of queries with keys of their own."""
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    weight = query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5
    return weight.masked_fill(~mask, -torch.inf).softmax(-1) @ values


def random_step(entries, heads=4, groups=2):
    return [torch.randn(2, count, entries, 6).double() for count in (heads, groups, groups)]


@pytest.mark.parametrize("step", [0, 1, 3])
def test_an_entry_sees_the_text_before_it_and_itself(step):
    entries = 4
    seen = visible(entries, step)
    for entry in range(entries):
        own = {later * entries + entry for later in range(1, step + 1)}
        assert set(seen[entry].nonzero().flatten().tolist()) == set(range(entry + 1)) | own


def test_every_step_attends_by_the_mask_of_that_step():
    torch.manual_seed(0)
    entries, keys = 5, UnrolledKeys(torch.arange(5).expand(2, -1))
    kept = []
    for step in range(3):
        query, key, value = random_step(entries)
        kept.append((key, value))
        found = keys.attend(query, key, value)
        sides = [torch.cat(side, 2) for side in zip(*kept, strict=True)]
        torch.testing.assert_close(found, dense(query, *sides, visible(entries, step)), rtol=1e-12, atol=1e-12)
        wider = torch.ones(entries, (step + 1) * entries, dtype=torch.bool)
        assert not torch.allclose(found, dense(query, *sides, wider))
        assert keys.position_BN[1].tolist() == [step, step + 1, step + 2, step + 3, step + 4]
        keys.advance()


def test_layers_keep_their_own_keys():
    torch.manual_seed(0)
    both, alone = UnrolledKeys(torch.zeros(2, 3)), UnrolledKeys(torch.zeros(2, 3))
    first, second = random_step(3), random_step(3)
    both.attend(*first, layer=0)
    assert torch.equal(both.attend(*second, layer=1), alone.attend(*second))


def test_documents_of_a_row_do_not_see_each_other():
    torch.manual_seed(0)
    document = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]])
    whole = UnrolledKeys(torch.arange(5).expand(2, -1), document)
    parts = [UnrolledKeys(torch.arange(size).expand(2, -1)) for size in (2, 3)]
    for _ in range(3):
        tensors = random_step(5)
        found = whole.attend(*tensors)
        for part, places in zip(parts, (slice(0, 2), slice(2, 5)), strict=True):
            own = part.attend(*(tensor[:, :, places] for tensor in tensors))
            torch.testing.assert_close(found[:, :, places], own, rtol=1e-12, atol=1e-12)
            part.advance()
        whole.advance()


def test_a_copy_gets_a_step_that_the_keys_do_not():
    torch.manual_seed(0)
    entries, keys = 4, UnrolledKeys(torch.arange(4).expand(2, -1), torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]))
    keys.attend(*random_step(entries))
    keys.advance()
    step = random_step(entries)
    found = [keys.copy().attend(*step) for _ in range(2)]
    assert torch.equal(*found)
    assert torch.equal(keys.attend(*step), found[0])
    later = keys.copy()
    later.advance()
    assert keys.position_BN[0].tolist() == [1, 2, 3, 4]
    assert later.position_BN[0].tolist() == [2, 3, 4, 5]
