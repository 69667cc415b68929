"""The built-in verifiers of token trees (floor 3).

Each is a function of `tempspec.core.multidraft`, its coins and one draw. A chain is a tree, so they verify chains too.

Axes: B batch, K drafted (tree nodes), V vocabulary. Inside `verify`, `logp_BKV` is `[B, K+1, V]`.
"""

from typing import ClassVar, get_args

from torch import Tensor

from tempspec.core import multidraft, trees
from tempspec.core.noise import Stream
from tempspec.interfaces import Draft, Noise, Siblings, Verdict, Verifier

__all__ = ["KSequential", "RecursiveRejection", "Traversal"]

_ALL: frozenset[Siblings] = frozenset(get_args(Siblings))


def _verdict(node_B: Tensor, draft: Draft, next_token_B: Tensor) -> Verdict:
    """The path to `node_B` stands."""
    return Verdict(trees.path(node_B, draft.tree_BK).sum(-1), next_token_B, node_B)


def _recursive(logp_BKV: Tensor, draft: Draft, noise: Noise, *, joint: bool) -> Verdict:
    """Recursive rejection of the tree's nodes, each alone from the root down, or jointly from the leaves up."""
    parts = (logp_BKV, draft.logq_BKV, draft.token_BK, draft.tree_BK, draft.length_B)
    coins = multidraft.tree_coins(*parts, joint=joint)
    descend = trees.first_from_leaves if joint else trees.walk
    node_B = descend(noise.coins(coins.coin_BN), draft.tree_BK)
    weight_BV = multidraft.tree_weight(logp_BKV, draft.logq_BKV, node_B, coins)
    return _verdict(node_B, draft, noise.draw(weight_BV, Stream.RESIDUAL))


class RecursiveRejection(Verifier):
    """Tests the children of a node one after the other, each against what the earlier ones left of p; exact.

    From the root down: a child is accepted with min(1, r/d), d being the law it was drawn from given its elder
    siblings; otherwise `r = (r - d)+`, normalised. With independent children this is SpecInfer's rule, with distinct
    ones RSD's and Sequoia's, with certain ones EAGLE-2's, and with `greedy` siblings that of greedy drafts (SpecHub at
    two children).
    """

    lossless: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Miao et al. 2023, SpecInfer, arXiv 2305.09781; Jeon et al. 2024, RSD, arXiv 2402.14160; "
        "Hu et al. 2025, greedy drafts, arXiv 2502.18779"
    )
    siblings: ClassVar[frozenset[Siblings]] = _ALL

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        return _recursive(logp_BKV, draft, noise, joint=False)


class KSequential(Verifier):
    """Tests independent children alike, each with min(1, p / (rho q)), rho in [1, K] chosen for the pair; exact.

    SpecTr's K-SEQ: at least (1 - 1/e) of what the optimal transport accepts. From the root down; with one child a node
    it is token-wise rejection.
    """

    lossless: ClassVar[bool] = True
    source: ClassVar[str] = "Sun et al. 2023, SpecTr, arXiv 2310.15141"
    siblings: ClassVar[frozenset[Siblings]] = frozenset({"independent"})

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        parts = (logp_BKV, draft.logq_BKV, draft.token_BK, draft.tree_BK, draft.length_B)
        coins = multidraft.sequential_coins(*parts)
        node_B = trees.walk(noise.coins(coins.coin_BN), draft.tree_BK)
        weight_BV = multidraft.sequential_weight(logp_BKV, draft.logq_BKV, node_B, coins)
        return _verdict(node_B, draft, noise.draw(weight_BV, Stream.RESIDUAL))


class Traversal(Verifier):
    """Verifies a tree from its leaves up, each path as a whole; exact, and on a chain it is block verification.

    A node that failed by itself may stand because of what hangs below it; siblings are tried in order, each with its
    whole subtree before the next.
    """

    lossless: ClassVar[bool] = True
    source: ClassVar[str] = "Weng et al. 2025, Traversal Verification, arXiv 2505.12398"
    siblings: ClassVar[frozenset[Siblings]] = _ALL

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        return _recursive(logp_BKV, draft, noise, joint=True)
