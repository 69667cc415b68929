"""What a draft is read as on a batch: one step of a language model, several of a head on the target's states (floor 5).

Entry i of a head's step j predicts token i + 2 + j, and the target's law of that token is after token i + 1 + j. A
step is a batch in which fewer tokens count, so that the loss and the measurements of any draft serve it.

Axes: B batch, T positions, N the step's response tokens, H hidden, X hidden or vocabulary, R a head's vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.interfaces import HeadModel
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import Batch, HiddenStates, LogitPairs, LogitSource, response

__all__ = [
    "DraftStep",
    "TargetRead",
    "head_steps",
    "joined",
    "kept_entries",
    "kept_positions",
    "read_target",
    "step_batch",
]

Features = Callable[[Batch, torch.dtype], tuple[tuple[Tensor, ...], Tensor]]
"""Knows the target's states and last hidden states of a batch, in a dtype."""


class DraftStep(NamedTuple):
    """A step of a draft on a batch.

    Attributes:
        batch: the batch with the tokens that count at this step.
        pairs: both models' logits at them.
        kept: which they are.
    """

    batch: Batch
    pairs: LogitPairs
    kept: Kept


def step_batch(batch: Batch, number: int, decay: float = 1.0) -> dict[str, Tensor]:
    """The batch of one step: the first 2 + j tokens of every document follow no entry of it, and do not count.

    Args:
        batch: as the data module makes it.
        number: j, from 0.
        decay: the rows' weights at step j are these to the power of j times their own.
    """
    mask_BT, first = batch["loss_mask"].clone(), 2 + number
    mask_BT[:, :first] = False
    if "position_ids" in batch:
        mask_BT &= batch["position_ids"] >= first
    return {**batch, "loss_mask": mask_BT, "weight": batch["weight"] * decay**number}


def kept_positions(output_BTX: Tensor, kept: Kept) -> Tensor:
    """The target's hidden states, or logits, `[N, X]` whose laws a step is to learn.

    Args:
        output_BTX: of the text.
        kept: the tokens of the step.
    """
    return kept.outputs(output_BTX)


def kept_entries(hidden_BNH: Tensor, kept: Kept, number: int) -> Tensor:
    """The head's hidden states `[N, H]` of the same tokens, in the same order.

    Args:
        hidden_BNH: of the step's entries, as `HeadModel.unrolled` gives them.
        kept: the tokens of the step.
        number: j.
    """
    width, entries = max(kept.mask_BT.shape[1], 1), hidden_BNH.shape[1]
    row_N, position_N = kept.place_N // width, kept.place_N % width
    return hidden_BNH.flatten(0, 1).index_select(0, row_N * entries + position_N - 1 - number)


class TargetRead(NamedTuple):
    """What a target makes of a batch.

    Attributes:
        states: those that a head reads, `[B, T, H]` each.
        output_BTX: its hidden states, or logits.
    """

    states: Sequence[Tensor]
    output_BTX: Tensor


@torch.no_grad()
def read_target(
    head: HeadModel, target: PreTrainedModel, batch: Batch, source: LogitSource, cached: Features | None = None
) -> TargetRead:
    """The target's part of a head's steps: one pass, however many steps and temperatures follow.

    Args:
        head: which states it reads.
        target: the target.
        batch: as the data module makes it.
        source: runs the target.
        cached: knows the target's states and last hidden states of the batch, in a dtype; None lets the target read.
    """
    if cached is None:
        return TargetRead(*source.tapped(target, batch, head.states))
    states, last_BTH = cached(batch, target.dtype)
    return TargetRead(states, target.get_output_embeddings()(last_BTH) if source.whole else last_BTH)


def head_steps(
    head: HeadModel,
    target: PreTrainedModel,
    batch: Batch,
    source: LogitSource,
    steps: int,
    decay: float = 1.0,
    read: TargetRead | None = None,
) -> Iterator[DraftStep]:
    """A head's unrolled steps over the text's own tokens; each may be left once its loss is known.

    Args:
        head: the head; gradients reach all of its steps.
        target: the target, which gets none.
        batch: as the data module makes it.
        source: runs the target.
        steps: J.
        decay: as in `step_batch`.
        read: what `read_target` gave for the batch; None lets the target read.
    """
    states, output_BTX = read_target(head, target, batch, source) if read is None else read
    document_BT, position_BT = _documents(batch, source)
    embed = target.get_input_embeddings()
    ids_R = None if head.ids_R is None else head.ids_R[head.ids_R < source.vocabulary]
    output_RH = head.output_RH if ids_R is None else head.output_RH[: len(ids_R)]
    steps_BNH = head.unrolled(states, batch["input_ids"], embed, steps, document_BT, position_BT)
    chunk = source.chunk if source.chunk != 0 else batch["loss_mask"].numel()  # no more logits than one step has
    for number, hidden_BNH in enumerate(steps_BNH):
        step = step_batch(batch, number, decay)
        kept = Kept.of(response(step))
        side = HiddenStates(kept_entries(hidden_BNH, kept, number), output_RH)
        pairs = source.pairs(source.side(target, kept_positions(output_BTX, kept)), side, ids_R)
        yield DraftStep(step, replace(pairs, chunk=chunk), kept)


def joined(steps: Sequence[DraftStep]) -> LogitPairs:
    """The logits of all steps' tokens, step after step; the target's of a token are those of every step.

    Args:
        steps: of one batch, the first of which counts every token that a later one does.
    """
    first, keep_BT = steps[0].pairs, steps[0].kept.mask_BT
    if len(steps) == 1:
        return first
    number_BT = keep_BT.flatten().cumsum(0).view_as(keep_BT) - 1
    place_N = torch.cat([step.kept.values(number_BT) for step in steps])
    drafts = [step.pairs.draft for step in steps]
    hidden_NH = torch.cat([draft.hidden_NH for draft in drafts if isinstance(draft, HiddenStates)])
    assert isinstance(first.draft, HiddenStates)
    return replace(first, draft=first.draft._replace(hidden_NH=hidden_NH), place_N=place_N)


def _documents(batch: Batch, source: LogitSource) -> tuple[Tensor | None, Tensor | None]:
    """The numbers of the documents in every row, and their positions, where they are kept from each other."""
    if not source.reading.apart or "position_ids" not in batch:
        return None, None
    position_BT = batch["position_ids"]
    return (position_BT == 0).cumsum(1), position_BT
