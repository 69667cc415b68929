"""Verification: the noise of a round, and the rule that decides which drafted tokens are accepted (floor 2).

Axes: B batch, K drafted, V vocabulary, N new tokens or tree nodes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tempspec.core.noise import Stream
from tempspec.core.tree_verification import Siblings
from tempspec.interfaces.drafting import Draft


class Noise(ABC):
    """The only source of randomness of a round. The engine derives it from request seeds; the kit enumerates it.

    A verifier that uses `coins` and `draw` alone can be enumerated exactly by `tempspec.testing.check_verifier`.
    """

    @abstractmethod
    def coins(self, probability_BK: Tensor) -> Tensor:
        """Independent accept decisions, bool `[B, K]`: True with the given probability (u < h, so 0 never accepts).

        A round has one u for each row and place, however often it is asked: what failed fails again with a smaller
        probability. A rule may toss with upper bounds first, and work out exact probabilities where those succeeded.
        """

    @abstractmethod
    def draw(self, weight: Tensor, stream: Stream = Stream.RESIDUAL) -> Tensor:
        """Independent samples, int64, one for each row of non-negative weights `[B, V]` or `[B, N, V]`.

        Weights need not be normalised. Draws from one stream within one round share its noise by offset: draw once.
        """

    @abstractmethod
    def shared_gumbel(self, count: int, vocabulary: int) -> Tensor:
        """Gumbel noise `[B, count, V]` of the next `count` absolute positions, the same for draft and target."""

    def coupled(self, logp_BNV: Tensor, first: int = 0) -> Tensor:
        """`argmax(logp + G)` under the shared noise, at N positions from the `first` on: int64 `[B, N]`.

        The tokens that `shared_gumbel` gives; a subclass may find them without V numbers per position.
        """
        gumbel_BNV = self.shared_gumbel(first + logp_BNV.shape[1], logp_BNV.shape[-1])[:, first:]
        return (logp_BNV + gumbel_BNV).argmax(-1)


@dataclass(slots=True)
class Verdict:
    """What verification decided: `accepted_B` drafted tokens are accepted, then `next_token_B` follows.

    Attributes:
        accepted_B: accepted tokens, int64.
        next_token_B: the token after them, int64.
        node_B: of a tree, the last accepted node, -1 if there is none: its path is what was accepted. None for a chain.
    """

    accepted_B: Tensor
    next_token_B: Tensor
    node_B: Tensor | None = None


class Verifier(ABC):
    """Decides how many drafted tokens are accepted and which token follows. Verifiers know no model."""

    lossless: ClassVar[bool]
    """Whether the emitted tokens have exactly the target's law, for every target temperature that the rule allows."""
    source: ClassVar[str] = ""
    """The paper that the rule comes from."""
    formula: ClassVar[str] = ""
    """What it accepts or emits, on one line."""
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
            logp_BKV: the target's log-law at each drafted position and after the last, `[B, K+1, V]`; position i
                holds the law of drafted token i, given the earlier ones. Of a tree: after the root, then each node.
            draft: the drafts, K may be 0; rows are ragged.
            noise: the randomness of this round.

        Returns:
            `accepted_B` in 0..length_B, and the token that follows.
        """

    def expected_acceptance(self, logp_BKV: Tensor, draft: Draft) -> Tensor | None:
        """P(token i is accepted | earlier ones were), over the draft's own randomness, `[B, K]`; None if no such form.

        The acceptance rate in closed form: `sum min(p, q)` for token-wise rejection. `logp_BKV` is `[B, K, V]`.

        In a tree, P(some child of place i is accepted | the place was reached), given the drafted tokens; place 0 is
        the root and place i node i - 1 (the last node has no children).
        """
        return None

    def expected_length(self, logp_BKV: Tensor, draft: Draft) -> Tensor | None:
        """E[accepted tokens] given the drafted tokens, over all decisions, `[B]`; None if the rule has no such form.

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
