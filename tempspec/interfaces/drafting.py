"""Drafting: what is proposed, by which drafter, and how many tokens (floor 2).

A tree of drafts is a chain whose tokens have parents: node order, and what "after node n" means, are those of
`tempspec.core.trees`.

Axes: B batch, K drafted, V vocabulary, T positions, M nodes of one call.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from tempspec.core.children import Children, Order
from tempspec.core.sampling import one_hot_log
from tempspec.core.tree_verification import Siblings
from tempspec.core.trees import ancestry, chain_parents, depths, elder, postorder


@dataclass(slots=True)
class Draft:
    """A chain of drafted tokens per row, or a tree of them; ragged.

    Attributes:
        token_BK: drafted ids; entries from `length_B` on mean nothing.
        length_B: how many are real, 0 to K.
        logq_BKV: the log-law that each was sampled from, exactly as sampled (one-hot for a deterministic draft); in a
            tree given its elder siblings too.
        parent_BK: of a tree, the node that each is a child of, -1 for the root; None for a chain. Parents come before
            their children, siblings in the order they were drawn.
        shape: those parents on the host, where they are the same in every row; spares it a look at the device.
        deepest: the length of the longest path or more, where the host knows it.
        chosen: whether no token was drawn: every law is one-hot on its token. Decisions are cheaper then.
    """

    token_BK: Tensor
    length_B: Tensor
    logq_BKV: Tensor
    parent_BK: Tensor | None = None
    shape: tuple[int, ...] | None = None
    deepest: int | None = None
    chosen: bool = False
    _on_BKK: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _children: Children | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def certain(cls, token_BK: Tensor, length_B: Tensor, vocabulary: int) -> "Draft":
        """A deterministic draft: q is one-hot on its tokens."""
        return cls(token_BK, length_B, one_hot_log(token_BK, vocabulary), chosen=True)

    def of_rows(self, row_B: Tensor) -> "Draft":
        """Some rows. A tree's tables stay as wide and deep as those of all, so that a verifier goes the same way."""
        parent_BK = None if self.parent_BK is None else self.parent_BK[row_B]
        given = self.token_BK[row_B], self.length_B[row_B], self.logq_BKV[row_B], parent_BK
        part = Draft(*given, self.shape, self.deepest, self.chosen)
        if self.parent_BK is not None:
            part._on_BKK, part._children = self.on_BKK[row_B], self.children.of_rows(row_B)
        return part

    @property
    def tree_BK(self) -> Tensor:
        """The parents, a chain's too, int64 `[B, K]`."""
        if self.parent_BK is not None:
            return self.parent_BK
        return chain_parents(self.token_BK.shape[1], device=self.token_BK.device).expand_as(self.token_BK)

    @property
    def on_BKK(self) -> Tensor:
        """The tree's `trees.ancestry`, a chain's too; computed once."""
        if self._on_BKK is None:
            known = self._known_shape is not None
            self._on_BKK = self.children.on_BNN if known else ancestry(self.tree_BK, self.deepest)
        return self._on_BKK

    @property
    def children(self) -> Children:
        """Who is whose child; computed once. Where the host knows no shape, it waits for the device here."""
        if self._children is None:
            shape = self._known_shape
            if shape is None:
                self._children = Children.of(self.tree_BK, self.length_B, self.on_BKK)
            else:
                self._children = Children.of_shape(shape, self.length_B)
        return self._children

    @property
    def elder_BKK(self) -> Tensor:
        """The tree's `trees.elder`, a chain's too."""
        return elder(self.tree_BK) if self._order is None else self._order.elder_BNN

    @property
    def postorder_BK(self) -> Tensor:
        """The tree's `trees.postorder`, a chain's too."""
        return postorder(self.tree_BK, self.on_BKK) if self._order is None else self._order.postorder_BN

    @property
    def depth(self) -> int:
        """The length of the longest path, or more, from what the host knows."""
        shape = self._known_shape
        if shape is not None:
            return max(depths(shape), default=0)
        return self.token_BK.shape[1] if self.deepest is None else self.deepest

    @property
    def _order(self) -> Order | None:
        shape = self._known_shape
        return None if shape is None else Order.of_shape(shape, len(self.token_BK), self.token_BK.device)

    @property
    def _known_shape(self) -> tuple[int, ...] | None:
        return tuple(range(-1, self.token_BK.shape[1] - 1)) if self.parent_BK is None else self.shape


@dataclass(frozen=True, slots=True)
class LastRound:
    """How a row's last round went, and all so far, for draft lengths that adapt; int64 `[B]` each.

    Attributes:
        limit_B: what the rule allowed; -1 in a row's first round, as in the next two.
        drafted_B: tokens drafted.
        accepted_B: tokens accepted.
        all_tested_B: tokens tested in all rounds so far; 0 in a row's first round, as in the next.
        all_accepted_B: tokens accepted in all rounds so far.
    """

    limit_B: Tensor
    drafted_B: Tensor
    accepted_B: Tensor
    all_tested_B: Tensor
    all_accepted_B: Tensor


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of a pair's forward passes over a full batch.

    Attributes:
        draft: one step of the draft, one token per row; 0 without a draft model.
        verify: passes of the target that verify 0, 1, 2, ... drafted tokens per row.
    """

    draft: float
    verify: tuple[float, ...]


class DraftLength(ABC):
    """How many tokens to draft.

    To stay lossless a rule may stop *after including* a token, looking at it and at q; never drop a token it has seen
    (a rule that samples a token, looks at it and drops it biases the text).

    Attributes:
        longest: the most tokens that a round may draft, at least 0: fixes buffer shapes.
    """

    source: ClassVar[str] = ""
    """The paper that the rule comes from."""
    formula: ClassVar[str] = ""
    """How many tokens it drafts, or where it stops, on one line."""
    longest: int

    @property
    def needs_step_times(self) -> bool:
        """Whether predict is to measure the pair's forward passes for this rule; see `timed`."""
        return False

    def timed(self, times: StepTimes) -> "DraftLength":
        """The same rule, told what passes cost; `times.verify` has `longest + 1` entries."""
        return self

    def limit(self, last: LastRound) -> Tensor:
        """The most tokens that each row may draft this round, int64 `[B]`, before any is drafted."""
        return torch.full_like(last.limit_B, self.longest)

    def for_round(self, last: LastRound) -> "DraftLength":
        """The rule whose `proceed` is asked in this round, of the same rows: one that knows how they fared so far."""
        return self

    def proceed(self, token_B: Tensor, logq_BV: Tensor) -> Tensor | None:
        """Whether to draft another token after `token_B`, bool `[B]`; None means always (nothing is computed)."""
        return None


class StepModel(Protocol):
    """A causal language model with a ragged key-value cache, as a drafter sees it."""

    def catch_up(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Feed each row's tokens that its cache lacks, up to `length_B`; logits `[B, V]` after the last."""

    def step(self, token_B: Tensor) -> Tensor:
        """Feed one more token per row; logits `[B, V]` after it."""

    def grow(self, token_BM: Tensor, parent_BM: Tensor) -> Tensor:
        """Feed nodes of a tree after what was caught up; logits `[B, M, V]` after each.

        Args:
            token_BM: their tokens.
            parent_BM: their parents by number, -1 for the root; nodes count from 0 in the order they are fed.
        """


@dataclass(frozen=True, slots=True)
class DraftContext:
    """What a drafter may use in one round.

    Attributes:
        token_BT: prompt and emitted tokens; entries from `length_B` on mean nothing.
        length_B: tokens so far.
        limit_B: the most tokens that each row may draft, at most `longest`.
        longest: the largest of `limit_B`, known without asking the device; the draft's K is at most this.
        vocabulary: V of the laws that verification sees.
        rule: the draft length rule, whose `proceed` the drafter asks after each token.
        sample: `(logits_BV, offset) -> (token_B, logq_BV)`: samples with every row's draft temperature, truncation
            and noise; logits may have the draft model's own vocabulary size.
        model: the draft model, or None for a drafter that needs none.
        law: `logits_BMV -> logq_BMV`: the draft's law at every row's draft temperature and truncation.
        draw: `(weight_BMV, node_M) -> token_BM`: samples, with each node's own noise.
        told: each row's text and the most tokens that it may draft, where the host knows them: see `texts`.
    """

    token_BT: Tensor
    length_B: Tensor
    limit_B: Tensor
    longest: int
    vocabulary: int
    rule: DraftLength
    sample: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    model: StepModel | None
    law: Callable[[Tensor], Tensor]
    draw: Callable[[Tensor, Tensor], Tensor]
    told: Callable[[], list[tuple[list[int], int]]] | None = None

    def texts(self) -> list[tuple[list[int], int]]:
        """Each row's tokens so far and the most that it may draft, on the host; reads the device if nobody knows."""
        if self.told is not None:
            return self.told()
        known_BC = torch.cat([self.length_B[:, None], self.limit_B[:, None], self.token_BT], 1)
        return [(tokens[:length], limit) for length, limit, *tokens in known_BC.tolist()]


class Drafter(ABC):
    """Proposes a chain of tokens, or a tree of them, for every row."""

    needs_model: ClassVar[bool] = False
    """Whether a draft model must be loaded for it."""
    drafts_with: ClassVar[frozenset[Literal["language model", "head"]]] = frozenset({"language model"})
    """What kinds of draft model it can draft with: a language model, a head on the target's hidden states."""
    siblings: Siblings | None = None
    """How children of one node are drawn, for a drafter of trees; None for chains."""
    most_children: int | None = None
    """The most children that one node may have, for a drafter of trees that knows it."""
    target_layers: int | None = None
    """Draft with this many of the target's first layers, its final norm and its head, instead of a draft model."""
    source: ClassVar[str] = ""
    """The paper that the drafter comes from."""

    @abstractmethod
    def propose(self, context: DraftContext) -> Draft:
        """The drafts of this round."""

    def most_nodes(self, longest: int) -> int:
        """The most tokens that a round drafts when paths are at most `longest` tokens long: fixes buffer shapes."""
        return longest
