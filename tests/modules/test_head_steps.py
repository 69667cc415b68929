from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tempspec.core.acceptance import overlap
from tempspec.core.divergences import forward_kl
from tempspec.interfaces import LossContext
from tempspec.models.eagle3 import Eagle3
from tempspec.models.reading import Reading
from tempspec.models.tapping import head_target, tapped
from tempspec.modules.fit.loss import FitLoss, Moment
from tempspec.modules.fit.objective import Objective
from tempspec.modules.head_steps import DraftStep, head_steps, joined, kept_entries, kept_positions, step_batch
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import HiddenStates, LogitPairs, LogitSource, response
from tempspec.plugins.divergences import ForwardKL, LabelCrossEntropy, NegativeLogAcceptance, ReverseKL, TotalVariation
from tempspec.plugins.schedules import Constant, Grid, TokenDifficulty
from tests.modules.wide import Wide

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
    kept = Kept.of(response(step))
    positions, entries = kept_positions(place, kept), kept_entries(place[:, :-1], kept, number)
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


def source(chunk=4, vocabulary=VOCABULARY, apart=False):
    return LogitSource(vocabulary, chunk, reading=Reading(masked=False, apart=apart))


def step_by_step(world, loss, chunk=4):
    """The loss of every step, from hidden states, a few tokens at a time."""
    target, head, _ = world
    found = head_steps(head, target, batch(), source(chunk), STEPS)
    return [loss([step], Moment(0, 10, 0)).loss for step in found]


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
    kept = Kept.of(response(own))
    early = HiddenStates(kept_entries(hidden.roll(1, 1), kept, 1), head.output_RH)
    side = HiddenStates(kept_positions(out.hidden_BTH, kept), target.lm_head.weight)
    wrong = loss([DraftStep(own, LogitPairs(side, early, VOCABULARY), kept)], Moment(0, 1, 0))
    assert not torch.isclose(right, wrong.loss)
    assert int(response(own).sum()) == len(early.hidden_NH)


def test_whole_logits_and_chunks_give_the_same_losses(world):
    loss = FitLoss(ForwardKL(), Constant(1.5))
    for one, other in zip(step_by_step(world, loss), step_by_step(world, loss, chunk=0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_step_counts_by_its_decay():
    assert step_batch(batch(), 2, 0.5)["weight"].tolist() == [0.25, 0.125, 0.5]


def test_no_entry_predicts_a_token_of_another_document():
    own = batch(2, 8) | {"loss_mask": torch.ones(2, 8, dtype=torch.bool)}
    own["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
    kept = step_batch(own, 1)["loss_mask"].int().tolist()
    assert kept == [[0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1, 1, 1]]


def test_packed_documents_learn_what_they_learn_alone(world):
    """Two documents in a row, kept from each other, against a row each."""
    target, head, _ = world
    loss, both = FitLoss(ForwardKL(), Constant(1.0)), batch(2, 8)
    ones = torch.ones(2, 8, dtype=torch.bool)
    alone = both | {"loss_mask": ones, "weight": torch.ones(2)}
    packed = {
        "input_ids": both["input_ids"].reshape(1, -1),
        "loss_mask": ones.reshape(1, -1),
        "weight": torch.ones(1),
        "generation_temperature": both["generation_temperature"][:1],
        "position_ids": torch.arange(8).repeat(2)[None],
    }
    results = []
    for rows, apart in ((alone, False), (packed, True)):
        steps = head_steps(head, target, rows, source(apart=apart), STEPS)
        results.append(torch.stack([loss([step], Moment(0, 1, 0)).loss for step in steps]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


# -- all steps in one walk ---------------------------------------------------------------------------------------------

LOSSES = {
    "one temperature": FitLoss(ForwardKL(), Constant(2.0)),
    "several": FitLoss(TotalVariation(), Grid([0.5, 1.5])),
    "labels": FitLoss(NegativeLogAcceptance(), Constant(0.7), 0.5),
    "a temperature for each token and step": FitLoss(ForwardKL(), TokenDifficulty()),
}
WALKS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def value_and_slopes(head, value):
    head.zero_grad()
    value.backward()
    return value.detach(), [one.grad.clone() for one in head.parameters()]


@WALKS
@pytest.mark.parametrize("chunk", [None, 0, 4])
def test_steps_together_are_the_steps_one_by_one(world, reduced, loss, chunk):
    for head in (world[1], reduced):
        found = []
        for number in (1, 2):
            steps = list(head_steps(head, world[0], batch(), source(chunk), STEPS, 0.5))
            if number == 1:
                alone = [loss([step], Moment(0, 10, 0)) for step in steps]
                weight = torch.stack([one.sums[0].weight for one in alone])
                value = (torch.stack([one.loss for one in alone]) * weight / weight.sum()).sum()
            else:
                whole = loss(steps, Moment(0, 10, 0))
                value = whole.loss
            found.append(value_and_slopes(head, value))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
        for one, other in zip(alone, whole.sums, strict=True):
            torch.testing.assert_close(vars(one.sums[0]), vars(other), rtol=1e-9, atol=1e-11)


def test_tokens_of_another_place_have_another_loss(world):
    steps = list(head_steps(world[1], world[0], batch(), source(), STEPS))
    right = joined(steps)
    wrong = replace(right, place_N=right.place_N.roll(1))
    objective = plain_objective(len(right.place_N))
    assert not torch.isclose(objective.of(right).total, objective.of(wrong).total)


def plain_objective(tokens):
    one_GN = torch.ones(1, tokens, dtype=torch.float64)
    return Objective(ForwardKL(), one_GN, one_GN, one_GN[:, 0], one_GN[0], LossContext(0, 10))


def test_three_steps_hold_no_more_logits_than_one(world):
    """As many numbers of the vocabulary's width, and one gradient of the output matrix."""
    target, head, _ = world
    own = batch() | {"loss_mask": torch.ones(3, 10, dtype=torch.bool)}
    found = {}
    for steps in (1, 3):
        read = list(head_steps(head, target, own, source(4), steps))
        with Wide(VOCABULARY) as wide:
            result = FitLoss(ForwardKL(), Constant(1.0))(read, Moment(0, 10, 0))
        kept = [value for value in result.loss.grad_fn.next_functions[0][0].found if value is not None]
        found[steps] = wide.most, sum(value.shape == head.output_RH.shape for value in kept)
    assert found[3][0] <= found[1][0]
    assert found[3][1] == 1
    assert 0 < found[1][0] < 3 * 8 * 24 * VOCABULARY  # bytes of three tensors of all tokens


# -- a draft vocabulary ------------------------------------------------------------------------------------------------

IDS = torch.tensor([1, 4, 5, 9, 20])


@pytest.fixture(scope="module")
def reduced(world):
    torch.manual_seed(3)
    target = world[0]
    return Eagle3(draft_vocabulary=len(IDS)).build(head_target(target), IDS).double()


def first_laws(world, reduced, temperature):
    """Both laws of the first step by definition: the target's over everything, the head's widened."""
    step = step_batch(batch(), 0)
    target = world[0].lm_head(kept_positions(world[2].hidden_BTH, Kept.of(response(step)))).detach() / temperature
    hidden = next(iter(reduced.unrolled(world[2].states, batch()["input_ids"], world[0].get_input_embeddings(), 1)))
    logits = reduced.target_logits(kept_entries(hidden, Kept.of(response(step)), 0)) / temperature
    weight = step["weight"].double()[:, None].expand(3, 9)[response(step)]
    return target.log_softmax(-1), logits.log_softmax(-1), weight


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("divergence", [TotalVariation(), NegativeLogAcceptance(), ReverseKL()])
def test_finite_divergences_see_the_whole_target(world, reduced, divergence, chunk):
    loss = FitLoss(divergence, Constant(1.5))
    step = next(head_steps(reduced, world[0], batch(), source(chunk), 1))
    found = loss([step], Moment(0, 10, 0))
    logp, logq, weight = first_laws(world, reduced, 1.5)
    context = LossContext(0, 10)
    expected = divergence(logp[None], logq[None], torch.full((1, len(weight)), 1.5), context)[0]
    torch.testing.assert_close(found.loss, (expected * weight).sum() / weight.sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [0, 4])
def test_an_infinite_divergence_is_of_the_renormalised_target(world, reduced, chunk):
    loss = FitLoss(ForwardKL(), Constant(1.5))
    step = next(head_steps(reduced, world[0], batch(), source(chunk), 1))
    found = loss([step], Moment(0, 10, 0))
    logp, logq, weight = first_laws(world, reduced, 1.5)
    expected = forward_kl(logp[:, IDS].log_softmax(-1), logq[:, IDS])
    torch.testing.assert_close(found.loss, (expected * weight).sum() / weight.sum(), rtol=1e-9, atol=1e-9)
    assert forward_kl(logp, logq).isinf().all()


def test_acceptance_is_of_the_whole_target_always(world, reduced):
    loss = FitLoss(ForwardKL(), Constant(1.0))
    step = next(head_steps(reduced, world[0], batch(), source(), 1))
    found = loss([step], Moment(0, 10, 0)).sums[0].means()["acceptance"]
    logp, logq, _ = first_laws(world, reduced, 1.0)
    torch.testing.assert_close(found.double(), overlap(logp, logq).mean(), rtol=1e-6, atol=1e-6)
    flattered = overlap(logp[:, IDS].log_softmax(-1), logq[:, IDS]).mean()
    assert flattered > 1.2 * found


def test_ids_that_are_no_real_ones_are_not_drafted(world, reduced):
    """A vocabulary that is padded behind id 9: the last of the head's ids is padding."""
    step = next(head_steps(reduced, world[0], batch(), source(vocabulary=10), 1))
    assert step.pairs.ids_R.tolist() == [1, 4, 5, 9]
    target, draft = next(step.pairs.pieces()).whole()
    assert target.shape[-1] == draft.shape[-1] == 10
    assert torch.isneginf(draft[:, [0, 2, 3, 6, 7, 8]]).all()


@pytest.mark.parametrize(("divergence", "weight"), [(LabelCrossEntropy(), 0.0), (TotalVariation(), 1.0)])
def test_labels_are_the_heads_own_and_others_teach_nothing(world, reduced, divergence, weight):
    step = next(head_steps(reduced, world[0], batch(), source(), 1))
    found = FitLoss(divergence, Constant(1.0), weight)([step], Moment(0, 10, 0)).loss
    _, logq, share = first_laws(world, reduced, 1.0)
    label = batch()["input_ids"][:, 1:][response(step.batch)]
    known = torch.isin(label, IDS)
    assert 0 < known.sum() < len(known)
    expected = -logq.gather(-1, label[:, None])[:, 0].masked_fill(~known, 0.0)
    torch.testing.assert_close(found, (expected * share).sum() / share.sum(), rtol=1e-9, atol=1e-9)
