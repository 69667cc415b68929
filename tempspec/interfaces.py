"""The abstract bases of the five plugin families and the records that pass between floors (floor 2).

A plugin author needs this module, `tempspec.core` and `tempspec.testing`, nothing else. Bases import torch only, so
that `tempspec plugins` stays quick. p is the target's law and q the draft's, everywhere.

A tree of drafts is a chain whose tokens have parents: node order, and what "behind node n" means, are those of
`tempspec.core.trees`.

Axes: B batch, K drafted, V vocabulary, T positions, N new tokens or tree nodes, M nodes of one call.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from tempspec.core.multidraft import Siblings
from tempspec.core.noise import Stream
from tempspec.core.sampling import one_hot_log
from tempspec.core.trees import chain_parents

__all__ = [
    "BASELINE",
    "Completion",
    "Divergence",
    "Draft",
    "DraftLength",
    "DraftTurn",
    "Drafter",
    "Kept",
    "LastRound",
    "LossContext",
    "Noise",
    "Pass",
    "Request",
    "ScheduleContext",
    "Seconds",
    "Siblings",
    "StepModel",
    "Summary",
    "TemperatureSchedule",
    "Temperatures",
    "Verdict",
    "Verifier",
]


# ---------------------------------------------------------------------------------------------------------------------
# Distillation
# ---------------------------------------------------------------------------------------------------------------------


Kept = Literal["top", "sampled"]
"""What a cached teacher keeps of every law: its largest logits, or samples."""


@dataclass(frozen=True, slots=True)
class LossContext:
    """What a divergence may look at besides the two laws.

    Attributes:
        step: optimiser steps taken so far, from 0.
        total_steps: the optimiser steps that the run will take, or None when unknown.
        label_BT: the token that the text itself has at each position, int64 `[B, T]`, or None.
    """

    step: int = 0
    total_steps: int | None = None
    label_BT: Tensor | None = None


class Divergence(ABC):
    """A distance between the target's and the draft's law at every position: what distillation minimises.

    A subclass implements `per_position`, and `in_context` too where it needs the step or the labels; callers call the
    instance, which applies the temperature factor. One that keeps a state of its own is a `torch.nn.Module` as well:
    then its buffers are saved with the run.

    Args:
        scale: `none` leaves the value as it is; `gradient` multiplies it by `temperature ** gradient_order`, which
            keeps the size of the gradient with respect to the logits when the temperature changes (Hinton et al. 2015).
    """

    gradient_order: ClassVar[int] = 2
    """The power of T that keeps the gradient's scale: 2 for the KL family, 1 for total variation."""
    source: ClassVar[str] = ""
    """The paper that the divergence comes from."""
    cached: frozenset[Kept] = frozenset()
    """The cached teachers that it can learn from: `top` if laws with the tail in one cell make sense to it, `sampled`
    if it is a sum over tokens of p f(q / p), which samples estimate without bias."""

    def __init__(self, scale: Literal["none", "gradient"] = "none") -> None:
        self.scale = scale

    @abstractmethod
    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """The divergence in nats, `[B, T]`, from log-laws `[B, T, V]`; p and q may hold zeros (-inf)."""

    def in_context(self, logp_BTV: Tensor, logq_BTV: Tensor, context: LossContext) -> Tensor:
        """As `per_position`, for a divergence that depends on the step or the labels."""
        return self.per_position(logp_BTV, logq_BTV)

    def observe(self, loss: Tensor, context: LossContext) -> None:  # noqa: B027 - most have nothing to remember
        """Take note of a batch's mean loss, the same on every rank; for divergences that adapt."""

    def __call__(
        self,
        logp_BTV: Tensor,
        logq_BTV: Tensor,
        temperature: Tensor | float = 1.0,
        context: LossContext | None = None,
    ) -> Tensor:
        """The divergence `[B, T]` with its temperature factor.

        Args:
            logp_BTV: the target's log-law, no gradient needed.
            logq_BTV: the draft's log-law.
            temperature: the draft's loss temperature, a number or a tensor that broadcasts to `[B, T]`.
            context: the step and the labels; by default the first step, without labels.
        """
        value = self.in_context(logp_BTV, logq_BTV, LossContext() if context is None else context)
        return value * temperature**self.gradient_order if self.scale == "gradient" else value


Summary = Literal["entropy", "loss", "peaks"]
"""What a schedule may ask about the two models' laws before it chooses temperatures."""


@dataclass(frozen=True, slots=True)
class ScheduleContext:
    """What a temperature schedule may look at. Laws are those at temperature 1.

    Attributes:
        step: optimiser steps taken so far, from 0.
        total_steps: the optimiser steps that the run will take, or None when unknown.
        batch_size: B.
        generator: the generator for random schedules (its state is saved with the run).
        generation_temperature_B: the temperature that each row's text was sampled at, `[B]`, NaN where unknown.
        keep_BT: which positions count in the loss, bool `[B, T]`, or None when the caller has no positions.
        entropy_BT: the target's entropy in nats, `[B, T]`; only for a schedule that asks for "entropy".
        loss_BT: forward KL in nats, `[B, T]`; only for one that asks for "loss".
        peak_p_BT: the target's largest logit less its mean, `[B, T]`; only for one that asks for "peaks".
        peak_q_BT: the draft's, likewise.

    Summaries mean nothing outside `keep_BT`.
    """

    step: int
    total_steps: int | None
    batch_size: int
    generator: torch.Generator
    generation_temperature_B: Tensor | None = None
    keep_BT: Tensor | None = None
    entropy_BT: Tensor | None = None
    loss_BT: Tensor | None = None
    peak_p_BT: Tensor | None = None
    peak_q_BT: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Temperatures:
    """The loss temperatures of one batch: each a scalar tensor, `[B, 1]`, or `[B, T]`; all positive.

    Several at once: with `weight_G` both sides have a leading axis, `[G, 1, 1]`, `[G, B, 1]` or `[G, B, T]`, and the
    loss is the weighted sum over it.

    Attributes:
        target: the target's.
        draft: the draft's.
        weight_G: the weight of each of several temperatures, `[G]`, non-negative; None for a single one.
    """

    target: Tensor
    draft: Tensor
    weight_G: Tensor | None = None


class TemperatureSchedule(ABC):
    """The loss temperature as a function of the optimiser step and the batch.

    A schedule with learned parameters is a `torch.nn.Module` as well: fit trains and saves them with the draft.
    """

    needs: frozenset[Summary] = frozenset()
    """The summaries that the context must carry; each costs a pass over both models' logits."""

    @abstractmethod
    def __call__(self, context: ScheduleContext) -> Temperatures:
        """The temperatures of this batch."""


# ---------------------------------------------------------------------------------------------------------------------
# Decoding: records
# ---------------------------------------------------------------------------------------------------------------------

BASELINE = "autoregressive"
"""The label of plain decoding, the denominator of every speed-up."""

Pass = Literal["acceptance", "timing"]
"""Which pass a request belongs to: the batched one that measures acceptance, or the one alone that measures speed."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to decode. Rows of one batch mix requests freely.

    Attributes:
        prompt: token ids, at least one.
        target_temperature: at least 0; 0 means argmax.
        draft_temperature: at least 0; 0 means argmax, None the target's temperature.
        top_k: 0 keeps all.
        top_p: in (0, 1]; 1 keeps all.
        min_p: in [0, 1]; 0 keeps all.
        max_new_tokens: at least 1.
        stop_ids: decoding ends with the first of these, which is kept as the last token.
        seed: all noise of this request derives from it.
        key: the caller's name for the request; the engine only hands it back.
    """

    prompt: tuple[int, ...]
    target_temperature: float = 1.0
    draft_temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 128
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0
    key: str = ""

    def __post_init__(self) -> None:
        """Refuse what no engine could decode.

        Raises:
            ValueError: a field is out of its range.
        """
        checks = (
            (len(self.prompt) > 0, "prompt", "at least one token id", "an empty prompt"),
            (0 <= self.target_temperature < float("inf"), "target_temperature", "0 or more", self.target_temperature),
            (
                self.draft_temperature is None or 0 <= self.draft_temperature < float("inf"),
                "draft_temperature",
                "0 or more",
                self.draft_temperature,
            ),
            (self.top_k >= 0, "top_k", "0 (all) or more", self.top_k),
            (0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p),
            (0 <= self.min_p <= 1, "min_p", "in [0, 1]", self.min_p),
            (self.max_new_tokens >= 1, "max_new_tokens", "1 or more", self.max_new_tokens),
        )
        for fine, name, expected, got in checks:
            if not fine:
                raise ValueError(f"{name} must be {expected}, got {got}")

    @property
    def proposal_temperature(self) -> float:
        """The temperature that drafts are sampled at."""
        return self.target_temperature if self.draft_temperature is None else self.draft_temperature

    def shortened(self, max_new_tokens: int) -> "Request":
        """The same request for at most this many new tokens."""
        return replace(self, max_new_tokens=min(max_new_tokens, self.max_new_tokens))


@dataclass(slots=True)
class Seconds:
    """Wall-clock seconds of one request; a batch's time is shared evenly by the rows that were active.

    Attributes:
        prefill: feeding the prompt to both models.
        draft: forward passes of the draft model.
        verify: forward passes of the target.
        overhead: all else of the rounds: sampling, verdicts, bookkeeping.
    """

    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    overhead: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.prefill + self.draft + self.verify + self.overhead


@dataclass(slots=True)
class Completion:
    """What the engine returns for one request. Lists have one entry a round (one target call after the prefill).

    A round's counts end with the stop token where one was emitted: what was drafted behind it was never asked for.

    Attributes:
        request: the request.
        tokens: the new token ids, the stop id included.
        finish: `stop` (a stop id) or `length` (max_new_tokens or the models' context).
        drafted: tokens drafted; of a tree those of its longest path.
        tested: drafted tokens whose earlier ones in the round were all accepted; at most accepted + 1. Siblings count
            once.
        accepted: drafted tokens accepted.
        expected: the analytic acceptance (the verifier's `expected_acceptance`) summed over the tested tokens; empty
            when the engine was not asked for it or the verifier has none.
        foreseen: the verifier's `expected_length` of each round, cut by no stop token; empty likewise.
        seconds: where the time went.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"
    drafted: list[int] = field(default_factory=list)
    tested: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)
    foreseen: list[float] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def target_calls(self) -> int:
        """Target forward passes after the prefill: one a round."""
        return len(self.drafted)


# ---------------------------------------------------------------------------------------------------------------------
# Decoding: noise
# ---------------------------------------------------------------------------------------------------------------------


class Noise(ABC):
    """The only source of randomness of a round. The engine derives it from request seeds; the kit enumerates it.

    A verifier that uses `coins` and `draw` alone can be enumerated exactly by `tempspec.testing.check_verifier`.
    """

    @abstractmethod
    def coins(self, probability_BK: Tensor) -> Tensor:
        """Independent accept coins, bool `[B, K]`: True with the given probability (u < h, so 0 never accepts)."""

    @abstractmethod
    def draw(self, weight: Tensor, stream: Stream = Stream.RESIDUAL) -> Tensor:
        """Independent samples, int64, one for each row of non-negative weights `[B, V]` or `[B, N, V]`.

        Weights need not be normalised. Draws from one stream within one round share its noise by offset: draw once.
        """

    @abstractmethod
    def shared_gumbel(self, count: int, vocabulary: int) -> Tensor:
        """Gumbel noise `[B, count, V]` of the next `count` absolute positions, the same for draft and target."""


# ---------------------------------------------------------------------------------------------------------------------
# Decoding: drafting
# ---------------------------------------------------------------------------------------------------------------------


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
    """

    token_BK: Tensor
    length_B: Tensor
    logq_BKV: Tensor
    parent_BK: Tensor | None = None

    @classmethod
    def certain(cls, token_BK: Tensor, length_B: Tensor, vocabulary: int) -> "Draft":
        """A deterministic draft: q is one-hot on its tokens."""
        return cls(token_BK, length_B, one_hot_log(token_BK, vocabulary))

    @property
    def tree_BK(self) -> Tensor:
        """The parents, a chain's too, int64 `[B, K]`."""
        if self.parent_BK is not None:
            return self.parent_BK
        return chain_parents(self.token_BK.shape[1], device=self.token_BK.device).expand_as(self.token_BK)


@dataclass(frozen=True, slots=True)
class LastRound:
    """How a row's last round went, for draft lengths that adapt; -1 in a row's first round.

    Attributes:
        limit_B: what the rule allowed, int64 `[B]`.
        drafted_B: tokens drafted.
        accepted_B: tokens accepted.
    """

    limit_B: Tensor
    drafted_B: Tensor
    accepted_B: Tensor


class DraftLength(ABC):
    """How many tokens to draft.

    To stay lossless a rule may stop *after including* a token, looking at it and at q; never drop a token it has seen
    (verification.md's anticipation rule: sampling a token, looking at it and dropping it is biased).

    Attributes:
        longest: the most tokens that a round may draft, at least 0: fixes buffer shapes.
    """

    longest: int

    def limit(self, last: LastRound) -> Tensor:
        """The most tokens that each row may draft this round, int64 `[B]`, before any is drafted."""
        return torch.full_like(last.limit_B, self.longest)

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
        """Feed nodes of a tree behind what was caught up; logits `[B, M, V]` after each.

        Args:
            token_BM: their tokens.
            parent_BM: their parents by number, -1 for the root; nodes count from 0 in the order they are fed.
        """


@dataclass(frozen=True, slots=True)
class DraftTurn:
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


class Drafter(ABC):
    """Proposes a chain of tokens, or a tree of them, for every row."""

    needs_model: ClassVar[bool] = False
    """Whether a draft model must be loaded for it."""
    siblings: Siblings | None = None
    """How children of one node are drawn, for a drafter of trees; None for chains."""
    target_layers: int | None = None
    """Draft with this many of the target's first layers, its final norm and its head, instead of a draft model."""
    source: ClassVar[str] = ""
    """The paper that the drafter comes from."""

    @abstractmethod
    def propose(self, turn: DraftTurn) -> Draft:
        """The drafts of this round."""

    def most_nodes(self, longest: int) -> int:
        """The most tokens that a round drafts when paths are at most `longest` tokens long: fixes buffer shapes."""
        return longest


# ---------------------------------------------------------------------------------------------------------------------
# Decoding: verification
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Verdict:
    """What verification decided: `accepted_B` drafted tokens stand, then `next_token_B` follows.

    Attributes:
        accepted_B: tokens that stand, int64.
        next_token_B: the token behind them, int64.
        node_B: of a tree, the last node that stands, -1 if none does: its path is what was accepted. None for a chain.
    """

    accepted_B: Tensor
    next_token_B: Tensor
    node_B: Tensor | None = None


class Verifier(ABC):
    """Decides how many drafted tokens stand and which token follows. Verifiers know no model."""

    lossless: ClassVar[bool]
    """Whether the emitted tokens have exactly the target's law, for every target temperature that `supports`."""
    source: ClassVar[str] = ""
    """The paper that the rule comes from."""
    shared_noise: ClassVar[bool] = False
    """Whether drafts must be sampled with the shared Gumbel noise (coupling) instead of their own stream."""
    greedy_only: ClassVar[bool] = False
    """Whether the rule is defined for target temperature 0 alone."""
    reads_logits: ClassVar[bool] = False
    """Whether `verify` gets the target's raw logits in place of its log-law: for rules of temperature 0 alone."""
    siblings: ClassVar[frozenset[Siblings]] = frozenset()
    """The trees that the rule verifies, by how siblings are drawn; empty for a rule of chains alone."""

    @abstractmethod
    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """Verify one round.

        Args:
            logp_BKV: the target's log-law at each drafted position and behind the last, `[B, K+1, V]`; position i
                holds the law of drafted token i, given the earlier ones. Of a tree: behind the root, then each node.
            draft: the drafts, K may be 0; rows are ragged.
            noise: the randomness of this round.

        Returns:
            `accepted_B` in 0..length_B, and the token that follows.
        """

    def expected_acceptance(self, logp_BKV: Tensor, draft: Draft) -> Tensor | None:
        """P(token i is accepted | earlier ones were), over the draft's own randomness, `[B, K]`; None if no such form.

        The analytic twin of the acceptance rate: `sum min(p, q)` for token-wise rejection. `logp_BKV` is `[B, K, V]`.
        """
        return None

    def expected_length(self, logp_BKV: Tensor, draft: Draft) -> Tensor | None:
        """E[accepted tokens] from the drafted tokens without the coins, `[B]`; None if the rule has no such form.

        An unbiased estimate of the accepted length with less variance than the count: its mean over drafts is E[tau].
        `logp_BKV` is `[B, K+1, V]`.
        """
        return None

    def emitted_law(self, logp_BKV: Tensor, logq_BKV: Tensor) -> Tensor | None:
        """The log-law that a tested position is emitted with, `[B, K, V]`, for a lossy rule that knows it.

        Args:
            logp_BKV: the target's log-laws at the drafted positions, `[B, K, V]`.
            logq_BKV: the draft's.
        """
        return None
