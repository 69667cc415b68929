"""The built-in verifiers of token trees (floor 3).

Each is a function of `tempspec.core.tree_verification`, its decisions and one draw. Chains are trees, too.

Axes: B batch, K drafted (tree nodes), V vocabulary. Inside `verify`, `logp_BKV` is `[B, K+1, V]`.
"""

from abc import abstractmethod
from typing import ClassVar, get_args

from torch import Tensor

from tempspec.core import k_sequential, tree_verification, trees
from tempspec.core.children import Children
from tempspec.core.noise import Stream
from tempspec.core.tree_ascent import ascend, following
from tempspec.core.tree_descent import chosen_coins, descend
from tempspec.interfaces import Draft, Noise, Siblings, Verdict, Verifier
from tempspec.plugins.verifiers import SampledMatch

__all__ = ["KSequential", "RecursiveRejection", "Traversal"]

_ALL: frozenset[Siblings] = frozenset(get_args(Siblings))


def _parts(logp_BKV: Tensor, draft: Draft) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Children]:
    """What the accept decisions of a tree depend on."""
    return logp_BKV, draft.logq_BKV, draft.token_BK, draft.tree_BK, draft.length_B, draft.children


def _accepted(node_B: Tensor, draft: Draft) -> Tensor:
    """How many tokens are accepted when the path to `node_B` is."""
    return trees.path(node_B, draft.tree_BK, draft.on_BKK).sum(-1)


def _chosen_steps(logp_BKV: Tensor, draft: Draft) -> Tensor:
    """P's mass on each node's token, for children that were chosen."""
    return tree_verification.match_steps(logp_BKV, draft.token_BK, draft.tree_BK, draft.length_B)


class _TopDown(Verifier):
    """A rule that decides on the way down: what it accepts is known from the nodes' probabilities."""

    lossless: ClassVar[bool] = True

    @abstractmethod
    def coin_probability(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """The probability that each node is accepted when it is tried, float64 `[B, K]`; 0 after the row's length."""

    def expected_acceptance(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`1 - prod (1 - c)` over the accept probabilities of a place's children."""
        return trees.onward(self._steps(logp_BKV, draft), draft.tree_BK)

    def expected_length(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """The chance of every node to be passed, summed."""
        return trees.walked_depth(self._steps(logp_BKV, draft), draft.tree_BK)

    def _steps(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        return trees.steps(self.coin_probability(logp_BKV, draft), draft.tree_BK)


class RecursiveRejection(_TopDown):
    """Tests the children of a node one after the other, each against what the earlier ones left of p; exact.

    From the root down: a child is accepted with min(1, r/d), d being what it was drawn from given its elder
    siblings; otherwise `r = (r - d)+`, normalised. With independent children this is SpecInfer's rule, with distinct
    ones RSD's and Sequoia's, with certain ones EAGLE-2's, and with `greedy` siblings that of greedy drafts (SpecHub at
    two children).
    """

    formula = "accept a child with min(1, r(x) / d(x)), with r = p at first, then (r - d)+"
    source: ClassVar[str] = (
        "Miao et al. 2023, SpecInfer, arXiv 2305.09781; Jeon et al. 2024, RSD, arXiv 2402.14160; "
        "Hu et al. 2025, greedy drafts, arXiv 2502.18779"
    )
    siblings: ClassVar[frozenset[Siblings]] = _ALL

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`; of chosen children as if they were looked up in p."""
        if draft.chosen:
            return SampledMatch().verify(logp_BKV, draft, noise)
        end = descend(logp_BKV, draft.logq_BKV, draft.token_BK, draft.children, noise.coins)
        return Verdict(end.depth_B, noise.draw(end.weight_BV, Stream.RESIDUAL), end.node_B)

    def coin_probability(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`min(1, r / d)` with r what the elder siblings left of p."""
        if draft.chosen:
            return tree_verification.match_coins(_chosen_steps(logp_BKV, draft), draft.tree_BK)
        return tree_verification.tree_coins(*_parts(logp_BKV, draft), joint=False).coin_BN


class KSequential(_TopDown):
    """Tests independent children alike, each with min(1, p / (rho q)), rho in [1, K] chosen for the pair; exact.

    SpecTr's K-SEQ: at least (1 - 1/e) of what the optimal transport accepts. From the root down; with one child a node
    it is token-wise rejection.
    """

    formula = "accept a child with min(1, p(x) / (rho q(x)))"
    source: ClassVar[str] = "Sun et al. 2023, SpecTr, arXiv 2310.15141"
    siblings: ClassVar[frozenset[Siblings]] = frozenset({"independent"})

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        coins = k_sequential.sequential_coins(*_parts(logp_BKV, draft))
        node_B = trees.walk(noise.coins(coins.coin_BN), draft.tree_BK, draft.on_BKK, draft.elder_BKK)
        weight_BV = k_sequential.sequential_weight(logp_BKV, draft.logq_BKV, node_B, coins)
        return Verdict(_accepted(node_B, draft), noise.draw(weight_BV, Stream.RESIDUAL), node_B)

    def coin_probability(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`min(1, p / (rho q))`."""
        return k_sequential.sequential_coins(*_parts(logp_BKV, draft)).coin_BN


class Traversal(Verifier):
    """Verifies a tree from its leaves up, each path as a whole; exact, and on a chain it is block verification.

    A node that failed by itself may be accepted because of what hangs below it; siblings are tried in order, each with
    its whole subtree before the next.
    """

    formula = "as block verification along each path, the leaves first"
    lossless: ClassVar[bool] = True
    source: ClassVar[str] = "Weng et al. 2025, Traversal Verification, arXiv 2505.12398"
    siblings: ClassVar[frozenset[Siblings]] = _ALL

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        if draft.chosen:
            return self._verify_chosen(logp_BKV, draft, noise)
        ascent = ascend(logp_BKV, draft.logq_BKV, draft.token_BK, draft.children)
        node_B = trees.first_from_leaves(noise.coins(ascent.coin_BN), draft.tree_BK, draft.postorder_BK)
        weight_BV = following(logp_BKV, node_B, ascent)
        return Verdict(_accepted(node_B, draft), noise.draw(weight_BV, Stream.RESIDUAL), node_B)

    def _verify_chosen(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """Of children that were chosen: p's mass on them decides."""
        parts = draft.token_BK, draft.tree_BK, draft.length_B
        coin_BK = chosen_coins(_chosen_steps(logp_BKV, draft), draft.tree_BK, draft.depth)
        node_B = trees.first_from_leaves(noise.coins(coin_BK), draft.tree_BK, draft.postorder_BK)
        weight_BV = tree_verification.match_weight(logp_BKV, *parts, node_B)
        return Verdict(_accepted(node_B, draft), noise.draw(weight_BV, Stream.RESIDUAL), node_B)

    def expected_length(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """Every node's depth times the chance that it is the first to be accepted, from the leaves up."""
        if draft.chosen:
            coin_BK = chosen_coins(_chosen_steps(logp_BKV, draft), draft.tree_BK, draft.depth)
            return trees.depth_from_leaves(coin_BK, draft.tree_BK)
        ascent = ascend(logp_BKV, draft.logq_BKV, draft.token_BK, draft.children)
        return trees.depth_from_leaves(ascent.coin_BN, draft.tree_BK)
