import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tempspec.core.divergences import forward_kl
from tempspec.models.eagle3 import Eagle3
from tempspec.models.tapping import head_target, tapped
from tempspec.modules.fit.head_steps import kept_entries, kept_positions, step_batch
from tempspec.modules.fit.loss import FitLoss, Heads, Moment, response
from tempspec.modules.fit.objective import Head
from tempspec.plugins.divergences import ForwardKL
from tempspec.plugins.schedules import Constant

STEPS, VOCABULARY = 3, 24


def batch(rows=3, length=10):
    torch.manual_seed(1)
    mask = torch.rand(rows, length) < 0.7
    mask[:, 0] = False
    mask[1, 6:] = False  # padding
    return {
        "input_ids": torch.randint(VOCABULARY, (rows, length)),
        "loss_mask": mask,
        "weight": torch.tensor([1.0, 0.5, 2.0][:rows]),
        "generation_temperature": torch.full((rows,), torch.nan, dtype=torch.float32).view(torch.int32),
    }


@pytest.mark.parametrize("number", range(STEPS))
def test_entries_and_positions_are_those_of_the_same_tokens(number):
    step = step_batch(batch(), number)
    place = torch.arange(10).expand(3, -1)[..., None]
    positions, entries = kept_positions(place, step), kept_entries(place[:, :-1], step, number)
    assert torch.equal(positions, entries + 1 + number)
    tokens = [(row, token) for row in range(3) for token in range(2 + number, 10) if batch()["loss_mask"][row, token]]
    assert positions.flatten().tolist() == [token - 1 for _, token in tokens]


def test_a_step_changes_nothing_of_the_batch():
    whole = batch()
    before = whole["loss_mask"].clone()
    step_batch(whole, 1)
    assert torch.equal(whole["loss_mask"], before)


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 8}
    target = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).eval().double()
    head = Eagle3().build(head_target(target)).double()
    for parameter in head.parameters():
        parameter.data.normal_(1.0 if parameter.ndim < 2 else 0.0, 0.3)
    with torch.no_grad():
        out = tapped(target, head.states, input_ids=batch()["input_ids"], use_cache=False)
    return target, head, out


def step_by_step(world, loss):
    """The loss of every step, from hidden states, a few tokens at a time."""
    target, head, out = world
    own = batch()
    found = []
    for number, hidden in enumerate(head.unrolled(out.states, own["input_ids"], target.get_input_embeddings(), STEPS)):
        step = step_batch(own, number)
        sides = Heads(
            Head(kept_positions(out.hidden_BTH, step), target.lm_head.weight),
            Head(kept_entries(hidden, step, number), head.output_RH),
            VOCABULARY,
            chunk=4,
        )
        found.append(loss(sides, step, Moment(0, 10, 0)).loss)
    return found


def at_once(world, temperature):
    """The same by definition: all steps' logits together."""
    target, head, out = world
    own = batch()
    hidden = list(head.unrolled(out.states, own["input_ids"], target.get_input_embeddings(), STEPS))
    logp = (target.lm_head(out.hidden_BTH).detach() / temperature).log_softmax(-1)
    found = []
    for number in range(STEPS):
        logq = (head.logits(hidden[number]) / temperature).log_softmax(-1)
        total, count = 0.0, 0.0
        for row in range(3):
            for entry in range(8 - number):
                weight = float(own["weight"][row]) * bool(own["loss_mask"][row, entry + 2 + number])
                total = total + weight * forward_kl(logp[row, entry + 1 + number], logq[row, entry])
                count += weight
        found.append(total / count)
    return found


def test_losses_of_steps_and_their_gradients_are_right(world):
    loss = FitLoss(ForwardKL(), Constant(2.0))
    results = []
    for values in (step_by_step(world, loss), at_once(world, 2.0)):
        world[1].zero_grad()
        (values[0] + 0.9 * values[1] + 0.81 * values[2]).backward()
        results.append((torch.stack(values).detach(), [one.grad.clone() for one in world[1].parameters()]))
    (chunked, slopes), (plain, expected) = results
    torch.testing.assert_close(chunked, plain, rtol=1e-10, atol=1e-10)
    for one, other in zip(slopes, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_an_entry_that_is_off_by_one_has_another_loss(world):
    loss = FitLoss(ForwardKL(), Constant(1.0))
    right = step_by_step(world, loss)[1]
    target, head, out = world
    own = step_batch(batch(), 1)
    hidden = list(head.unrolled(out.states, own["input_ids"], target.get_input_embeddings(), 2))[1]
    early = Head(kept_entries(hidden.roll(1, 1), own, 1), head.output_RH)
    wrong = loss(
        Heads(Head(kept_positions(out.hidden_BTH, own), target.lm_head.weight), early, VOCABULARY), own, Moment(0, 1, 0)
    )
    assert not torch.isclose(right, wrong.loss)
    assert int(response(own).sum()) == len(early.hidden_NH)
