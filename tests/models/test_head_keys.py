"""Training steps against decoding with the ragged cache, on a real target's states."""

import pytest
import torch

from tempspec.models.eagle3 import Eagle3
from tempspec.models.head_keys import RaggedKeys
from tempspec.models.tapping import head_target, tapped
from tests.tiny import llama

LENGTHS = [11, 7, 9]
STEPS = 3


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def world(request):
    """A target of eight layers, a head with weights far from new ones, three texts padded with rubbish."""
    model = llama(layers=8, num_attention_heads=4, num_key_value_heads=4).to(request.param)
    head = Eagle3().build(head_target(model)).to(request.param)
    for parameter in head.parameters():
        parameter.data.normal_(1.0 if parameter.ndim < 2 else 0.0, 0.3)
    token_BT = torch.randint(24, (3, max(LENGTHS)))
    with torch.no_grad():
        states = tapped(model, head.states, input_ids=token_BT, use_cache=False).states
    return model, head, token_BT, states


@torch.no_grad()
def decode(world, begin_B, rows=None):
    """Rounds that begin at an entry of each row: entries up to it in two passes, then one a step, in the batch."""
    model, head, token_BT, states = world
    keys = RaggedKeys(head.key_layers, 4, 64)
    rows = torch.arange(3) if rows is None else rows
    start_B = (begin_B - 3).clamp(min=0)  # the first pass feeds the text before, the second up to four entries more
    found = []
    for first_B, new in ((torch.zeros_like(start_B), int(start_B.max())), (start_B, 4)):
        place_BN = (first_B[:, None] + torch.arange(new)).clamp(max=token_BT.shape[1] - 2)
        if new:
            keys.begin(first_B, new, longest=int(first_B.max()), rows=rows)
            own = [state[torch.arange(3)[:, None], place_BN] for state in states]
            token_BN = token_BT.gather(1, place_BN + 1)
            hidden, carry = head.step(head.start(own), token_BN, model.get_input_embeddings()(token_BN), keys, 0)
    pick = (begin_B - start_B)[:, None, None].expand(-1, 1, hidden.shape[-1])
    hidden, carry = hidden.gather(1, pick), carry.gather(1, pick)
    for step in range(1, STEPS + 1):
        found.append(hidden[:, 0])
        token_B1 = token_BT.gather(1, (begin_B + 1 + step).clamp(max=token_BT.shape[1] - 1)[:, None])
        keys.begin(begin_B + step, 1, longest=int(begin_B.max()) + step, rows=rows)
        hidden, carry = head.step(carry, token_B1, model.get_input_embeddings()(token_B1), keys, step)
    return found


def unrolled(world):
    model, head, token_BT, states = world
    with torch.no_grad():
        return list(head.unrolled(states, token_BT, model.get_input_embeddings(), STEPS))


def edge(head):
    return 1e-10 if head.fc.weight.dtype == torch.float64 else 1e-5


@pytest.mark.parametrize("begin", [(0, 0, 0), (2, 0, 4), (7, 3, 5)])
def test_training_steps_equal_decoding_of_ragged_rows(world, begin):
    begin_B = torch.tensor(begin)
    whole = unrolled(world)
    for step, hidden_BH in enumerate(decode(world, begin_B)):
        torch.testing.assert_close(
            hidden_BH, whole[step][torch.arange(3), begin_B], rtol=edge(world[1]), atol=edge(world[1])
        )


def test_rows_may_be_any_slots(world):
    begin_B = torch.tensor([5, 2, 4])
    for one, other in zip(decode(world, begin_B), decode(world, begin_B, torch.tensor([3, 0, 2])), strict=True):
        torch.testing.assert_close(one, other, rtol=edge(world[1]), atol=edge(world[1]))


def test_a_step_that_is_fed_another_token_is_told_apart(world):
    _, _, token_BT, _ = world
    before = unrolled(world)
    token_BT[:, 5] = (token_BT[:, 5] + 1) % 24
    after = unrolled(world)
    assert torch.equal(before[0][:, :4], after[0][:, :4])
    assert not torch.allclose(before[0][:, 4], after[0][:, 4])
    assert not torch.allclose(before[1][:, 3], after[1][:, 3])
