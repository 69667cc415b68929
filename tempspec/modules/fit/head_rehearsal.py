"""A step of training a head on tensors without contents: what of it is in memory at every moment (floor 5).

The target's pass, the head's own steps and the loss over all of them run as in fit; see
`tempspec.modules.fit.rehearsal`. Of the loss only the first chunks are computed, into gradients of the whole size.

Axes: B batch, T positions, N response tokens, M tokens of all steps, S states, X hidden or vocabulary, V vocabulary,
H hidden.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from tempspec.interfaces import HeadModel
from tempspec.models.conditioning import set_temperature
from tempspec.models.heads import hidden_states
from tempspec.models.tapping import Taps
from tempspec.modules.fit.rehearsal import CHUNKS, InMemory, Live, StepPlan, fake, objective
from tempspec.modules.outputs import HiddenStates, LogitPairs, SharedLogits, Side, TargetLogits, Tokens

__all__ = ["HeadPlan", "rehearse_head"]


@dataclass(frozen=True)
class HeadPlan:
    """How a head is trained.

    Attributes:
        steps: J, the unrolled ones.
        cached: whether the target's states come from files.
        renormalised: as in `Objective`.
    """

    steps: int
    cached: bool = False
    renormalised: bool = False


@dataclass(frozen=True)
class _FirstChunks(LogitPairs):
    """The first chunks of the loss: the others are like them.

    Attributes:
        steps: so many tokens of a chunk read the target's logits at one position.
    """

    steps: int = 1

    def chunks(self) -> Iterator[Tokens]:
        """See `LogitPairs.chunks`."""
        return islice(super().chunks(), CHUNKS)

    def of_target(self, tokens: Tokens, vocabulary: int) -> TargetLogits:
        """See `LogitPairs.of_target`; which of the tokens share a position is not known here, but how many are."""
        alone = replace(self, place_N=None, steps=1)
        if isinstance(tokens, slice) or self.steps == 1:
            return LogitPairs.of_target(alone, tokens, vocabulary)
        some = tokens[: -(-len(tokens) // self.steps)]
        logits_UV = LogitPairs.of_target(alone, some, vocabulary)
        assert isinstance(logits_UV, Tensor)
        return SharedLogits(logits_UV, torch.zeros_like(tokens))


def rehearse_head(head: HeadModel, target: PreTrainedModel, step: StepPlan, plan: HeadPlan) -> list[InMemory]:
    """The moments of a head's step that may be those with the most in memory.

    The models are on the meta device, in the precision of their weights in training, and are used up.

    Args:
        head: what is trained.
        target: what it learns from.
        step: how the step is taken.
        plan: and what is a head's own in it.

    Raises:
        Unknowable: a model's or the divergence's code must know what is in a tensor.
    """
    with FakeTensorMode(), step.running():
        known = [value for model in (head, target) for value in fake(model)]
        ids_BT = torch.zeros(step.batch_size, step.length, dtype=torch.int64)
        set_temperature(head.train(), 1.0)
        with Live([*known, ids_BT]) as live:
            for parameter in head.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(live.gradient)
            total = _loss(head, target, ids_BT, step, plan, live)
            live.kind = "activations"
            total.backward()
        return live.largest("chunks")


def _loss(
    head: HeadModel, target: PreTrainedModel, ids_BT: Tensor, step: StepPlan, plan: HeadPlan, live: Live
) -> Tensor:
    """The loss of all steps together, as `tempspec.modules.fit.loss.FitLoss` takes it."""
    sides = list(_steps(head, target, ids_BT, step, plan, live))
    live.kind = "logits"
    (first, _), drafts = sides[0], [hidden_NH for _, hidden_NH in sides]
    hidden_MH = torch.cat(drafts) if len(drafts) > 1 else drafts[0]
    place_M = torch.zeros(len(hidden_MH), dtype=torch.int64) if len(drafts) > 1 else None
    chunk = step.chunk or ids_BT.numel()
    draft = HiddenStates(hidden_MH, head.output_RH)
    pairs = _FirstChunks(first, draft, step.vocabulary, chunk, head.ids_R, place_M, steps=plan.steps)
    return objective(step, len(hidden_MH), head.ids_R, renormalised=plan.renormalised).of(pairs).total


def _steps(
    head: HeadModel, target: PreTrainedModel, ids_BT: Tensor, step: StepPlan, plan: HeadPlan, live: Live
) -> Iterator[tuple[Side, Tensor]]:
    """The target's side and the head's hidden states of each step, as `tempspec.modules.head_steps` takes them."""
    live.kind = "target"
    states, output_BTX = _read(target, head.states, ids_BT, step, plan)
    steps = head.unrolled(states, ids_BT, target.get_input_embeddings(), plan.steps)
    output = target.get_output_embeddings()
    for number in range(plan.steps):
        live.kind = "activations"
        hidden_BNH, count = next(steps), ids_BT.shape[1] - 2 - number
        hidden_NH = _kept(hidden_BNH, 0, count)
        live.kind = "target"
        output_NX = _kept(output_BTX, 1 + number, count)
        yield (HiddenStates(output_NX, output.weight, output.bias) if step.chunk else output_NX), hidden_NH


@torch.no_grad()
def _read(
    target: PreTrainedModel, states: Sequence[int], ids_BT: Tensor, step: StepPlan, plan: HeadPlan
) -> tuple[Sequence[Tensor], Tensor]:
    """The target's states `[B, T, H]`, and its hidden states or logits `[B, T, X]`, by a pass or as files have them."""
    if not plan.cached:
        with Taps(target, states) as taps:
            run = partial(hidden_states, target) if step.chunk else lambda **inputs: target(**inputs).logits
            output_BTX = run(input_ids=ids_BT, use_cache=False)
            return taps.states, output_BTX
    head = target.get_output_embeddings()
    size = *ids_BT.shape, head.weight.shape[1]
    states_SBTH = torch.zeros(len(states), *size, dtype=target.dtype)
    last_BTH = torch.zeros(*size, dtype=target.dtype)
    return states_SBTH.unbind(), last_BTH if step.chunk else head(last_BTH)


def _kept(value_BTX: Tensor, first: int, count: int) -> Tensor:
    """Values `[N, X]` of so many positions of every row, copied as a mask of them would."""
    index_N = torch.zeros(len(value_BTX) * count, dtype=torch.int64)
    return value_BTX[:, first : first + count][index_N, index_N]
