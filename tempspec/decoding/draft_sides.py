"""What drafts in an engine: a language model with its own cache, or a head on the target's states (floor 4).

An engine asks both the same. Invariant of a head: of every row it has fed all entries but that of the last token, entry
i being what the target made of token i, joined with token i + 1. The pass that verifies gives the states of what was
accepted, so the entries after it are fed at once, and the next round begins with the last of them.

Axes: S slots, B rows of the batch, R rows of a call, N entries, D path of accepted nodes, H hidden, C numbers that a
step hands on, V vocabulary, T token buffer.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.core.trees import grown
from tempspec.decoding import step_times
from tempspec.decoding.rounds import RoundStart
from tempspec.interfaces import HeadModel, HeadStep
from tempspec.models.draft_steps import DraftSteps, lacking
from tempspec.models.head_draft import DraftModel
from tempspec.models.head_keys import RaggedKeys
from tempspec.models.ragged import RaggedModel, readable
from tempspec.models.stopwatch import Stopwatch

__all__ = ["DraftSide", "HeadSide", "HeadSteps", "LanguageModelSide", "draft_side"]


class LanguageModelSide:
    """A draft that is a language model.

    Args:
        model: the draft.
        slots: the most rows.
        capacity: positions per row.
        widths: as in `RaggedModel`.
    """

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int, widths: Sequence[int]) -> None:
        self._model = RaggedModel(model, slots, capacity, widths)
        self.stopwatch = self._model.stopwatch
        self.context = self._model.context

    @property
    def cache_bytes(self) -> int:
        """Bytes of its cache."""
        return self._model.cache.nbytes

    def room(self, length: int) -> int:
        """The tokens that a row of this length may draft."""
        return self.context - length

    def fill(
        self, token_ST: Tensor, index_R: Tensor, span: range, lengths: list[int], states: Sequence[Tensor]
    ) -> None:
        """Take in tokens of prompts that the target has just read; see `HeadSide.fill`."""
        begin, end = span.start, min(span.stop, self.context)
        if begin < end:
            self._model.fill(token_ST[index_R, begin:end], torch.full_like(index_R, begin), longest=begin, rows=index_R)

    def copy(self, from_R: Tensor, to_R: Tensor, length: int) -> None:
        """Give rows what others were filled with, so many tokens of each."""
        self._model.copy(from_R, to_R, min(length, self.context))

    def steps(self, start: RoundStart, vocabulary: int) -> DraftSteps:
        """The draft of one round, as a drafter sees it."""
        return DraftSteps(self._model, len(start.length_B), start.extent, vocabulary)

    def lacking(self, rows: Iterable[tuple[int, int]]) -> int:
        """The most tokens that a round catches up on, from each row's length and what is cached of it."""
        return lacking(rows, self.context)

    def observe(self, start: RoundStart, accepted_B: Tensor, node_BD: Tensor | None, states: Sequence[Tensor]) -> None:
        """Take in a round that was verified: nothing, as the next one catches up on its tokens."""

    def pass_seconds(self, rows: int, text: int, width: int) -> float:
        """See `tempspec.decoding.step_times.pass_seconds`."""
        return step_times.pass_seconds(self._model, rows, text, width)


class HeadSide:
    """A draft that is a head.

    Args:
        head: the head.
        target: whose embedding it reads.
        slots: the most rows.
        capacity: positions per row.
    """

    def __init__(self, head: HeadModel, target: PreTrainedModel, slots: int, capacity: int) -> None:
        self.head = head
        self.keys = RaggedKeys(head.key_layers, slots, capacity, target.device)
        self.stopwatch = Stopwatch(target.device)
        self.context = 2**31
        self._target, self._slots = target, slots
        self._last: HeadStep | None = None

    @property
    def cache_bytes(self) -> int:
        """Bytes of its cache."""
        return self.keys.nbytes

    def room(self, length: int) -> int:
        """The tokens that a row of this length may draft: none after a single token, which has no state yet."""
        return self.context if length > 1 else 0

    def fill(
        self, token_ST: Tensor, index_R: Tensor, span: range, lengths: list[int], states: Sequence[Tensor]
    ) -> None:
        """Take in tokens of prompts that the target has just read.

        Args:
            token_ST: the token buffer.
            index_R: the slots of the prompts.
            span: the tokens' positions.
            lengths: of the prompts.
            states: the target's of these tokens, `[R, N, H]` each.
        """
        begin, end = span.start, span.stop
        with self.stopwatch.running():
            token_RN = token_ST[index_R, begin + 1 : end + 1]
            self.keys.begin(torch.full_like(index_R, begin), end - begin, longest=begin, rows=index_R)
            step = self.advance(self.head.start(states), token_RN, 0)
            ending = [at for at, length in enumerate(lengths) if begin <= length - 2 < end]
            if ending:
                place = index_R.new_tensor([lengths[at] - 2 - begin for at in ending])
                row = index_R.new_tensor(ending)
                self._keep(HeadStep(*(value[row, place] for value in step)), index_R[row])

    def copy(self, from_R: Tensor, to_R: Tensor, length: int) -> None:
        """Give rows what others were filled with, so many entries of each, and the step of the last one."""
        self.keys.copy(from_R, to_R, length)
        assert self._last is not None
        self._keep(HeadStep(*(value[from_R] for value in self._last)), to_R)

    def steps(self, start: RoundStart, vocabulary: int) -> "HeadSteps":
        """The head of one round, as a drafter sees it."""
        return HeadSteps(self, len(start.length_B), start.extent.longest, vocabulary)

    def lacking(self, rows: Iterable[tuple[int, int]]) -> int:
        """The most entries that a round catches up on: none, as `observe` has fed them."""
        return 0

    def observe(self, start: RoundStart, accepted_B: Tensor, node_BD: Tensor | None, states: Sequence[Tensor]) -> None:
        """Take in a round that was verified, its tokens already in the buffer.

        Args:
            start: the round.
            accepted_B: how many tokens were accepted.
            node_BD: of a tree the accepted path's nodes, then arbitrary values.
            states: the target's of the last token and of all drafted ones, `[B, N, H]` each.
        """
        with self.stopwatch.running():
            if node_BD is not None:
                place_BN = torch.nn.functional.pad(node_BD + 1, (1, 0))
                states = [state.gather(1, place_BN[..., None].expand(-1, -1, state.shape[-1])) for state in states]
            width = states[0].shape[1]
            offset_N = torch.arange(width, device=accepted_B.device)
            token_BN = start.token_BT.gather(1, start.length_B[:, None] + offset_N)
            self.keys.begin(start.length_B - 1, width, longest=start.extent.longest - 1)
            step = self.advance(self.head.start(states), token_BN, 0)
            row_B = torch.arange(len(accepted_B), device=accepted_B.device)
            self._keep(HeadStep(*(value[row_B, accepted_B] for value in step)), row_B)

    def advance(self, carry_BNC: Tensor, token_BN: Tensor, number: int) -> HeadStep:
        """A step for entries whose places the keys know."""
        embedded_BNH = self._target.get_input_embeddings()(readable(token_BN, self._target))
        return self.head.step(carry_BNC, token_BN, embedded_BNH, self.keys, number)

    def last(self, rows: int) -> HeadStep:
        """The step of the last entry of each of the first rows: hidden `[B, H]`, and what it hands on `[B, C]`."""
        assert self._last is not None
        return HeadStep(*(value[:rows] for value in self._last))

    def _keep(self, step: HeadStep, index_R: Tensor) -> None:
        """Keep the steps of last entries, a row each."""
        if self._last is None:
            self._last = HeadStep(*(value.new_zeros(self._slots, value.shape[-1]) for value in step))
        for kept, value in zip(self._last, step, strict=True):
            kept[index_R] = value

    def pass_seconds(self, rows: int, text: int, width: int) -> float:
        """Seconds of a step of some entries per row, after so many; see `tempspec.decoding.step_times.pass_seconds`."""
        token_RN = torch.zeros(rows, width, dtype=torch.int64, device=self._target.device)
        states = [token_RN.new_zeros(rows, width, self._width, dtype=self._target.dtype) for _ in self.head.states]

        def once() -> float:
            self.stopwatch.take()
            with self.stopwatch.running():
                self.keys.begin(torch.full_like(token_RN[:, 0], text), width, longest=text)
                self.head.target_logits(self.advance(self.head.start(states), token_RN, 0).hidden_BNH)
            return self.stopwatch.take()

        return step_times.median_of(once)

    @property
    def _width(self) -> int:
        return int(self._target.get_output_embeddings().weight.shape[1])


DraftSide = LanguageModelSide | HeadSide


def draft_side(
    draft: DraftModel | None,
    target: PreTrainedModel,
    slots: int,
    capacity: int,
    widths: Sequence[int],
) -> DraftSide | None:
    """What drafts, of the kind that the draft is; None without one. Arguments as in the classes'."""
    if draft is None:
        return None
    if isinstance(draft, HeadModel):
        return HeadSide(draft, target, slots, capacity)
    return LanguageModelSide(draft, slots, capacity, widths)


class HeadSteps:
    """A head in one round, as a drafter sees it (`interfaces.StepModel`): the entry that is due, then one per step.

    Args:
        side: whose rows.
        rows: B.
        longest: tokens of the longest row.
        vocabulary: ids from here on are padding.

    Attributes:
        fed: -1: nothing that was drafted stays in the cache.
        largest_B: the sum of each position's largest logit, which is finite where all of them are numbers.
    """

    fed = -1

    def __init__(self, side: HeadSide, rows: int, longest: int, vocabulary: int) -> None:
        self._side, self._vocabulary, self._longest, self._number = side, vocabulary, longest - 1, 0
        self._hidden_BNH, self._carry_BNC = (value[:, None] for value in side.last(rows))
        device = self._hidden_BNH.device
        self._grown_BNN: Tensor | None = None
        self.largest_B = torch.zeros(rows, dtype=torch.float32, device=device)

    def catch_up(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Logits `[B, V]` after each row's last token, whose entry was fed when the round before was verified."""
        self._place_B = length_B - 1
        return self._watched(self._hidden_BNH)[:, 0]

    def step(self, token_B: Tensor) -> Tensor:
        """Feed one more token per row; logits `[B, V]` after it."""
        with self._side.stopwatch.running():
            self._number += 1
            self._side.keys.begin(self._place_B, 1, longest=self._longest)
            hidden_B1H, self._carry_BNC = self._side.advance(self._carry_BNC, token_B[:, None], self._number)
            self._place_B, self._longest = self._place_B + 1, self._longest + 1
        return self._watched(hidden_B1H)[:, 0]

    def grow(self, token_BM: Tensor, parent_BM: Tensor) -> Tensor:
        """Feed nodes of a tree, one level per call, after the entry that was due; logits `[B, M, V]` after each."""
        width = token_BM.shape[1]
        with self._side.stopwatch.running():
            self._number += 1
            before = 0 if self._grown_BNN is None else self._grown_BNN.shape[1]
            self._grown_BNN = grown(self._grown_BNN, parent_BM)
            self._side.keys.begin(
                self._place_B + before, width, longest=self._longest + before, visible_RNN=self._grown_BNN
            )
            carry_BMC = self._carry_BNC.gather(1, (parent_BM + 1)[..., None].expand(-1, -1, self._carry_BNC.shape[-1]))
            step = self._side.advance(carry_BMC, token_BM, self._number)
            self._carry_BNC = torch.cat([self._carry_BNC, step.carry_BNC], 1)
        return self._watched(step.hidden_BNH)

    def _watched(self, hidden_BNH: Tensor) -> Tensor:
        """The logits `[B, N, V]` of entries, counted in `largest_B`."""
        with self._side.stopwatch.running():
            logits_BNV = self._side.head.target_logits(hidden_BNH)
        self.largest_B += logits_BNV[..., : self._vocabulary].amax(-1).sum(-1)
        return logits_BNV
