"""The built-in verifiers: each is a function of `tempspec.core.verification`, its decisions and one draw (floor 3).

Every rule takes all its randomness from the round's `Noise`, once per stream.

Axes: B batch, K drafted, V vocabulary. Inside `verify`, `logp_BKV` is `[B, K+1, V]`.
"""

from typing import ClassVar, get_args

from torch import Tensor

from tempspec.core import acceptance, tree_verification, trees
from tempspec.core import verification as core
from tempspec.core.noise import Stream
from tempspec.interfaces import Draft, Noise, Siblings, Verdict, Verifier

__all__ = ["BlockVerification", "GreedyMatch", "GumbelCoupling", "SampledMatch", "TokenwiseRejection"]


_ALL: frozenset[Siblings] = frozenset(get_args(Siblings))


def _while_equal(token_BK: Tensor, draft: Draft) -> Verdict:
    """Accept while the target's own tokens `[B, K+1]` equal the drafted ones; the first that differs follows.

    In a tree, descend while a child equals the target's own token after its parent.
    """
    if draft.parent_BK is not None:
        own_BK = token_BK.gather(1, draft.parent_BK + 1)
        right_BK = (own_BK == draft.token_BK) & core.real(own_BK, draft.length_B)
        node_B = trees.walk(right_BK, draft.parent_BK, draft.on_BKK)
        next_token_B = token_BK.gather(1, node_B[:, None] + 1).squeeze(1)
        return Verdict(trees.path(node_B, draft.parent_BK, draft.on_BKK).sum(-1), next_token_B, node_B)
    accepted_B = core.first_rejection(token_BK[:, :-1] == draft.token_BK, draft.length_B)
    return Verdict(accepted_B, token_BK.gather(1, accepted_B[:, None]).squeeze(1))


class _Match(Verifier):
    """A rule that emits the target's own tokens and accepts while they are the drafted ones; of any tree."""

    lossless: ClassVar[bool] = True
    siblings: ClassVar[frozenset[Siblings]] = _ALL

    def expected_acceptance(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`sum p q`: two independent samples agree. In a tree p's mass on a place's children."""
        if draft.parent_BK is None:
            return acceptance.agreement(logp_BKV, draft.logq_BKV)
        return trees.onward(self._steps(logp_BKV, draft), draft.parent_BK)

    def expected_length(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """Every drafted token's probability, with those before it, summed."""
        return trees.walked_depth(self._steps(logp_BKV, draft), draft.tree_BK)

    def _steps(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        return tree_verification.match_steps(logp_BKV, draft.token_BK, draft.tree_BK, draft.length_B)


class GreedyMatch(_Match):
    """Accepts a token while it is the target's most likely one. For target temperature 0; exact there.

    The shortest rule and the cheapest: one argmax per position, no noise. Ties go to the lowest id, as in the one-hot
    distribution of temperature 0.
    """

    formula = "accept x if x = argmax p"
    source: ClassVar[str] = "Stern et al. 2018, Blockwise Parallel Decoding, arXiv 1811.03115"
    greedy_only: ClassVar[bool] = True

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        return _while_equal(logp_BKV.argmax(-1), draft)


class TokenwiseRejection(Verifier):
    """Accepts each token with probability min(1, p/q) up to the first failure; exact at any temperature.

    Speculative sampling as first published. The token after a failure is drawn from `(p - q)+`, the bonus token from
    p. Accepts `sum min(p, q)` of the tested tokens, the most that any rule can which looks at one token at a time.
    """

    formula = "accept x with min(1, p(x) / q(x)), else draw from (p - q)+"
    lossless: ClassVar[bool] = True
    source: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318"

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        logp_BK, logq_BK = core.of_token(logp_BKV, draft.token_BK), core.of_token(draft.logq_BKV, draft.token_BK)
        accept_BK = noise.coins(core.acceptance_probability(logp_BK, logq_BK))
        accepted_B = core.first_rejection(accept_BK, draft.length_B)
        weight_BV = core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B)
        return Verdict(accepted_B, noise.draw(weight_BV, Stream.RESIDUAL))

    def expected_acceptance(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`sum min(p, q)`, one minus the total variation distance."""
        return acceptance.overlap(logp_BKV, draft.logq_BKV)

    def expected_length(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`sum_i prod_{j<=i} min(1, r_j)`."""
        logp_BK, logq_BK = core.of_token(logp_BKV, draft.token_BK), core.of_token(draft.logq_BKV, draft.token_BK)
        standing_BK = core.acceptance_probability(logp_BK, logq_BK).cumprod(-1)
        return (standing_BK * core.real(draft.token_BK, draft.length_B)).sum(-1)


class BlockVerification(Verifier):
    """Verifies the drafted tokens jointly: never accepts fewer on average than token-wise; exact at any temperature.

    Every position has its own random decision, and the last success wins: a token that failed by itself may be rescued
    by later ones that the target likes better than the draft did.
    """

    formula = "at least i tokens with P_i = min(1, P_(i - 1) p(x_i) / q(x_i)), where P_0 = 1"
    lossless: ClassVar[bool] = True
    source: ClassVar[str] = "Sun et al. 2024, Block Verification Accelerates Speculative Decoding, arXiv 2403.10444"

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        logp_BK, logq_BK = core.of_token(logp_BKV, draft.token_BK), core.of_token(draft.logq_BKV, draft.token_BK)
        survival_BK = core.block_survival(core.log_ratio(logp_BK, logq_BK))
        accepted_B = core.block_accepted(logp_BKV, draft.logq_BKV, survival_BK, draft.length_B, noise.coins)
        survival_B = survival_BK.gather(1, accepted_B[:, None]).squeeze(1)
        weight_BV = core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B, survival_B)
        return Verdict(accepted_B, noise.draw(weight_BV, Stream.RESIDUAL))

    def expected_length(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`sum_i P_i`: at least i tokens are accepted with probability P_i, averaged over later drafts."""
        logp_BK, logq_BK = core.of_token(logp_BKV, draft.token_BK), core.of_token(draft.logq_BKV, draft.token_BK)
        survival_BK = core.block_survival(core.log_ratio(logp_BK, logq_BK))[:, 1:]
        return (survival_BK * core.real(draft.token_BK, draft.length_B)).sum(-1)


class SampledMatch(_Match):
    """Accepts a token while it equals the target's own independent sample; exact at any temperature.

    Needs no draft distribution, so it suits drafts whose q is unknown. Accepts `sum p q`, less than rejection does. In
    a tree it is naive top-down verification: descend while a child is the target's sample. Whether a sample is a
    drafted token is decided with its probability, and only a sample that is none of them is drawn: the same law, from
    one pass.
    """

    formula = "accept x if x = y, with y ~ p"
    source: ClassVar[str] = "no paper: the target's own samples are what is emitted"

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        parts = (draft.token_BK, draft.tree_BK, draft.length_B)
        chance_BK = tree_verification.match_coins(self._steps(logp_BKV, draft), draft.tree_BK)
        node_B = trees.walk(noise.coins(chance_BK), draft.tree_BK, draft.on_BKK)
        weight_BV = tree_verification.match_weight(logp_BKV, *parts, node_B)
        accepted_B = trees.path(node_B, draft.tree_BK, draft.on_BKK).sum(-1)
        return Verdict(accepted_B, noise.draw(weight_BV, Stream.RESIDUAL), node_B)


class GumbelCoupling(Verifier):
    """Accepts while draft and target agree under shared Gumbel noise; exact, and the text does not depend on the draft.

    Both sides take `argmax(log-law + G)` with the same G, a function of seed, absolute position and token. The target's
    sample is emitted whatever was drafted. Accepts at least `(1 - TV) / (1 + TV)`.
    """

    formula = "accept x if x = argmax(log p + G), with x = argmax(log q + G)"
    lossless: ClassVar[bool] = True
    source: ClassVar[str] = "Daliri et al. 2024, Coupling without Communication, arXiv 2408.07978"
    shared_noise: ClassVar[bool] = True

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        return _while_equal(noise.coupled(logp_BKV), draft)

    def expected_acceptance(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`sum_x 1 / sum_y max(p_y / p_x, q_y / q_x)`: two samples under shared noise agree."""
        return acceptance.gumbel_agreement(logp_BKV, draft.logq_BKV)
