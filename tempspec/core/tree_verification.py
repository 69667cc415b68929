"""Verification of several drafted tokens per position and of token trees, without its randomness (floor 1).

Siblings are tested in the order they were drawn, each against d, the law that it was drawn from given its elder
siblings: q itself for independent children, q without the elder ones for distinct children, certainty for children that
were chosen rather than drawn. The recursions below need no more than d, whatever the way to draw.

All accept probabilities and residuals are functions of the tree alone: a round draws its decisions once, and one token.
Node order and the N + 1 convention: see `tempspec.core.trees`.

Axes: B batch, N nodes, V vocabulary, K children of one node; any leading axes where a shape is not named.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tempspec.core.acceptance import overlap
from tempspec.core.children import Children
from tempspec.core.sampling import one_hot_log
from tempspec.core.trees import elder
from tempspec.core.verification import at_position, of_token, precise, probabilities, quotient, real, strips

Siblings = Literal["independent", "distinct", "top", "greedy"]
"""How the children of one node are drawn.

- `independent`: each from q; equal tokens keep subtrees of their own.
- `distinct`: from q without replacement, as Gumbel-top-k does (Kool et al. 2019, 1903.06059).
- `top`: the most likely tokens, in order; nothing is drawn.
- `greedy`: the K - 1 most likely tokens and one drawn from the rest of q, which is tested first (Hu et al. 2025,
  2502.18779; SpecHub at K = 2, 2411.05289).
"""

_CERTAIN = 700.0
"""A law is certain of a token whose log-probability is so far ahead: float64 holds little below `exp(-700)`."""


# ---------------------------------------------------------------------------------------------------------------------
# Drawing siblings
# ---------------------------------------------------------------------------------------------------------------------


def is_drawn(siblings: Siblings, rank: int) -> bool:
    """Whether the child after `rank` elder ones is drawn at random, rather than chosen."""
    return siblings in ("independent", "distinct") or (siblings == "greedy" and rank == 0)


def sibling_law(logq: Tensor, score: Tensor, taken: Tensor, rank: int, count: int, siblings: Siblings) -> Tensor:
    """The log-law d that a child is drawn from, given its elder siblings, `[..., V]`.

    Where nothing of q is left to draw from, the best token that is not taken is certain: any d is exact that depends on
    q and the elder siblings alone.

    Args:
        logq: the draft's log-law at the parent.
        score: ranks tokens for what is not drawn: the draft's logits, or `logq`.
        taken: the elder siblings' tokens, bool `[..., V]`.
        rank: how many elder siblings there are.
        count: K, all children of the parent.
        siblings: how they are drawn.

    >>> logq, none = torch.tensor([0.5, 0.3, 0.2]).log(), torch.zeros(3, dtype=torch.bool)
    >>> sibling_law(logq, logq, none, 0, 2, "greedy").exp()
    tensor([0.0000, 0.6000, 0.4000])
    """
    if siblings == "independent":
        return logq
    vocabulary = logq.shape[-1]
    free = score.clamp(min=torch.finfo(score.dtype).min).masked_fill(taken, -torch.inf)
    if siblings == "top" or (siblings == "greedy" and rank > 0):
        return one_hot_log(free.argmax(-1), vocabulary, logq.dtype)
    if siblings == "greedy":
        top = free.topk(min(count - 1, vocabulary - 1)).indices
        taken = taken.scatter(-1, top, True)
        free = free.masked_fill(taken, -torch.inf)
    left = logq.masked_fill(taken, -torch.inf)
    none_left = (left == -torch.inf).all(-1, keepdim=True)
    best = one_hot_log(free.argmax(-1), vocabulary, logq.dtype)
    return torch.where(none_left, best, left.masked_fill(none_left, 0.0).log_softmax(-1))


# ---------------------------------------------------------------------------------------------------------------------
# Recursive rejection, node by node or jointly
# ---------------------------------------------------------------------------------------------------------------------


class _Law:
    """The law `a r` at one place of each row while its children are tried: `scale_B * law_BV`, so nothing is divided.

    Args:
        law_BV: the target's law there; it is overwritten.
        reach_B: a, how surely the place was reached, float64.
        logd_BNV: the log-laws that all nodes were drawn from.
        row_B: whose nodes the children are; by default each row's own.
    """

    def __init__(self, law_BV: Tensor, reach_B: Tensor, logd_BNV: Tensor, row_B: Tensor | None = None) -> None:
        self.law_BV = law_BV
        self.reach_B = self.scale_B = reach_B
        self._logd = logd_BNV.reshape(-1, logd_BNV.shape[-1])
        row_B = torch.arange(len(reach_B), device=reach_B.device) if row_B is None else row_B
        self._first_B = row_B * logd_BNV.shape[1]

    def of(self, token_B: Tensor) -> Tensor:
        """`a r` of one token, float64 `[B]`."""
        return self.law_BV.gather(1, token_B[:, None]).squeeze(1) * self.scale_B

    def refuse(self, child_B: Tensor) -> None:
        """Continue as if the child had failed: `m = (a r - d)+`, `s = sum m`, `r = m / s`, `a = s / (s + 1 - a)`.

        Rows whose child is -1 stay as they are.
        """
        there_B, at_B = child_B >= 0, self._first_B + child_B.clamp(min=0)
        factor_B = torch.where(there_B, self.scale_B, 0.0).to(self.law_BV.dtype)
        left_B = torch.empty_like(self.reach_B)
        for rows in strips(len(self.law_BV), self.law_BV):
            law_BV = self.law_BV[rows]
            excess_BV = probabilities(self._logd.index_select(0, at_B[rows])).neg_()
            excess_BV.addcmul_(law_BV, factor_B[rows, None]).clamp_(min=0.0)
            left_B[rows] = excess_BV.sum(-1).double()
            # Nothing is left of a = 1 only by rounding, or after a child that is never rejected: the law stays.
            law_BV.copy_(excess_BV.addcmul_(law_BV, (left_B[rows, None] == 0).to(law_BV.dtype)))
        changed_B = left_B > 0
        next_B = quotient(left_B, left_B + 1.0 - self.reach_B)
        kept_B = (~(there_B & (self.reach_B < 1.0))).to(self.reach_B.dtype)
        self.scale_B = torch.where(changed_B, quotient(next_B, left_B), self.scale_B * kept_B)
        self.reach_B = torch.where(changed_B, next_B, self.reach_B * kept_B)


@dataclass(frozen=True, slots=True)
class TreeCoins:
    """What the accept decisions of a tree are made with.

    Attributes:
        coin_BN: the probability that each node is accepted when it is tried, float64; 0 after the row's length.
        reach_BN: how surely each place was reached before its children were tried, `[B, N+1]`, the root's first.
        children: who they are.
    """

    coin_BN: Tensor
    reach_BN: Tensor
    children: Children


def tree_coins(
    logp_BNV: Tensor,
    logd_BNV: Tensor,
    token_BN: Tensor,
    parent_BN: Tensor,
    length_B: Tensor,
    children: Children | None = None,
    *,
    joint: bool,
) -> TreeCoins:
    """Recursive rejection of a tree's nodes, each node alone or jointly with what hangs below it.

    At each node: `r = p` and `a` is how surely the node was reached; for each child (t, d) in order, the child is
    reached with `min(1, a r(t) / d(t))`, and otherwise `m = (a r - d)+`, `s = sum m`, `r = m / s`,
    `a = s / (s + 1 - a)`.

    - `joint=False` keeps a = 1 and decides on the way down (Miao et al. 2023, 2305.09781; without replacement
      Jeon et al. 2024, 2402.14160, and Chen et al. 2024, 2402.12374): see `trees.walk`.
    - `joint=True` decides on the way up, with what is left of a after all children (Weng et al. 2025, traversal
      verification, 2505.12398): see `trees.first_from_leaves`. On a chain it equals block verification.

    Args:
        logp_BNV: the target's log-laws after the root and every node, `[B, N+1, V]`.
        logd_BNV: the log-law that each node was drawn from, given its elder siblings.
        token_BN: the nodes' tokens.
        parent_BN: their parents.
        length_B: the first nodes that are real.
        children: the trees' `Children`, where they are known.
        joint: see above.
    """
    nodes = token_BN.shape[1]
    children = Children.of(parent_BN, length_B) if children is None else children
    # Each with an entry more, which takes what a row with fewer places or children has not.
    reach_BN = torch.ones(len(token_BN), nodes + 2, dtype=torch.float64, device=token_BN.device)
    behind_BN, coin_BN = reach_BN.clone(), torch.zeros_like(reach_BN[:, 1:])
    chance_BN = of_token(logd_BNV, token_BN).double().exp()
    for depth, (width, count) in enumerate(children.levels):
        place_BW = children.place_BDW[:, depth, :width]
        at_BW, to_BW = place_BW.clamp(min=0), torch.where(place_BW < 0, nodes + 1, place_BW)
        start_BW = torch.ones_like(at_BW, dtype=coin_BN.dtype)
        if joint and depth:
            start_BW = coin_BN.gather(1, (at_BW - 1).clamp(min=0))
        reach_BN.scatter_(1, to_BW, start_BW)
        child_BWK = children.of_places(place_BW)
        row_R = torch.arange(len(token_BN), device=token_BN.device).repeat_interleave(width)
        law_RV = probabilities(at_position(logp_BNV, at_BW.flatten(), row_R))
        law = _Law(law_RV, start_BW.flatten(), logd_BNV, row_R)
        for rank in range(count):
            child_BW = child_BWK[..., rank]
            first_BW = child_BW.clamp(min=0)
            own_BW = law.of(token_BN.gather(1, first_BW).flatten()).view_as(child_BW)
            accept_BW = quotient(own_BW, chance_BN.gather(1, first_BW)).clamp(max=1.0)
            coin_BN.scatter_(1, torch.where(child_BW < 0, nodes, child_BW), accept_BW)
            if joint or rank + 1 < count:
                law.refuse(child_BW.flatten())
        behind_BN.scatter_(1, to_BW, law.reach_B.view_as(to_BW))
    coin_BN, reach_BN, behind_BN = coin_BN[:, :nodes], reach_BN[:, : nodes + 1], behind_BN[:, : nodes + 1]
    if not joint:
        return TreeCoins(coin_BN, reach_BN, children)
    parent_BN1 = (children.node_BNK >= 0).any(-1)[:, 1:]
    reach_BN[:, 1:] = coin_BN
    return TreeCoins(torch.where(parent_BN1, behind_BN[:, 1:], coin_BN), reach_BN, children)


def tree_weight(logp_BNV: Tensor, logd_BNV: Tensor, node_B: Tensor, coins: TreeCoins) -> Tensor:
    """The law of the token that follows when `node_B` is the last to be accepted, not normalised, `[B, V]`.

    What its children have left of p; p itself at a leaf. It is made again for the one node that needs it: keeping the
    laws of all nodes costs more.

    Args:
        logp_BNV: as in `tree_coins`.
        logd_BNV: as in `tree_coins`.
        node_B: the last accepted node of each row, -1 for none.
        coins: what `tree_coins` returned.
    """
    reach_B = coins.reach_BN.gather(1, node_B[:, None] + 1).squeeze(1)
    law = _Law(probabilities(at_position(logp_BNV, node_B + 1)), reach_B, logd_BNV)
    for child_B in coins.children.at(node_B).unbind(-1):
        law.refuse(child_B)
    return law.law_BV


def match_steps(logp_BNV: Tensor, token_BN: Tensor, parent_BN: Tensor, length_B: Tensor) -> Tensor:
    """P(the target's own token leads to each node | it is at the parent), `[B, N]`: p of the node's token.

    0 for a token that an elder sibling has, and after the row's length.

    Args:
        logp_BNV: the target's log-laws after the root and every node but the last at least, `[B, N, V]`.
        token_BN: the nodes' tokens.
        parent_BN: their parents.
        length_B: the first nodes that are real.
    """
    row_B1 = torch.arange(len(token_BN), device=token_BN.device)[:, None]
    own_BN = precise(logp_BNV[row_B1, parent_BN + 1, token_BN]).exp()
    twin_BN = (elder(parent_BN) & (token_BN[:, :, None] == token_BN[:, None])).any(-1)
    return own_BN.masked_fill(twin_BN | ~real(token_BN, length_B), 0.0)


def match_coins(step_BN: Tensor, parent_BN: Tensor) -> Tensor:
    """P(the target's own token leads to each node | to none of its elder siblings), float64 `[B, N]`.

    Args:
        step_BN: `match_steps`.
        parent_BN: the nodes' parents.
    """
    step_BN = step_BN.double()
    elder_BN = (elder(parent_BN) * step_BN[:, None]).sum(-1)
    return quotient(step_BN, 1.0 - elder_BN).clamp(max=1.0)


def match_weight(logp_BNV: Tensor, token_BN: Tensor, parent_BN: Tensor, length_B: Tensor, node_B: Tensor) -> Tensor:
    """The law of the target's own token when it leads to none of a node's children, not normalised, `[B, V]`.

    Args:
        logp_BNV: the target's log-laws after the root and every node, `[B, N+1, V]`.
        token_BN: the nodes' tokens.
        parent_BN: their parents.
        length_B: the first nodes that are real.
        node_B: the node of each row, -1 for the root.
    """
    p_BV = probabilities(at_position(logp_BNV, node_B + 1))
    child_BN = (parent_BN == node_B[:, None]) & real(token_BN, length_B)
    least_BN = torch.zeros_like(child_BN, dtype=p_BV.dtype).masked_fill_(~child_BN, torch.inf)
    rest_BV = p_BV.scatter_reduce(1, token_BN, least_BN, "amin")
    # Children that have all of p are left only by rounding.
    return torch.where((rest_BV.amax(-1) == 0)[:, None], p_BV, rest_BV)


# ---------------------------------------------------------------------------------------------------------------------
# One level: the chance that the emitted token is one of K drafts
# ---------------------------------------------------------------------------------------------------------------------


def optimal_acceptance(logp: Tensor, logq: Tensor, count: int | Tensor) -> Tensor:
    """The most that any rule can accept of K independent drafts, `[...]` from log-laws `[..., V]`; K may be `[...]`.

    `1 + min_H [p(H) - q(H)^K]` over the sets H of the tokens with the least p / q: the value of an optimal transport
    (Sun et al. 2023, 2310.15141; in this form Hu et al. 2025, 2502.18779).

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]), torch.tensor([0.2, 0.4, 0.1, 0.3])
    >>> optimal_acceptance(p.log(), q.log(), 2), optimal_acceptance(p.log(), q.log(), 3)
    (tensor(0.8600), tensor(0.9880))
    """
    p, q = precise(logp).exp(), precise(logq).exp()
    count = count[..., None] if isinstance(count, Tensor) else count
    order = torch.where(q > 0, p / torch.where(q > 0, q, 1.0), torch.inf).argsort(-1)
    head_p, head_q = p.gather(-1, order).cumsum(-1), q.gather(-1, order).cumsum(-1)
    return (1.0 + (head_p - head_q.clamp(max=1.0) ** count).amin(-1)).clamp(max=1.0)


def optimal_pair(logp: Tensor, logq: Tensor) -> Tensor:
    """The most that any rule can accept of two drafts without replacement, float64 `[...]` from log-laws `[..., V]`.

    `1 + min_H [p(H) - Q(H)]` with Q(H), that both drafts lie in H, `1 - (1 - q(H)) (1 + sum of q_x / (1 - q_x) in H)`:
    the dual of Hu et al. 2025, 2502.18779, over the sets H of the tokens with the least p / q. Some token besides the
    most likely one must have q > 0.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]), torch.tensor([0.2, 0.4, 0.1, 0.3])
    >>> optimal_pair(p.log(), q.log())
    tensor(0.9413, dtype=torch.float64)
    """
    p, q = precise(logp).double().exp(), precise(logq).double().softmax(-1)
    most = q.argmax(-1, keepdim=True)
    others = (1.0 - q).scatter(-1, most, q.scatter(-1, most, 0.0).sum(-1, keepdim=True))
    odds = quotient(q, others)
    order = torch.where(q > 0, p / torch.where(q > 0, q, 1.0), torch.inf).argsort(-1)
    head_p, head_odds = p.gather(-1, order).cumsum(-1), odds.gather(-1, order).cumsum(-1)
    from_here = q.gather(-1, order).flip(-1).cumsum(-1).flip(-1)
    tail = torch.nn.functional.pad(from_here[..., 1:], (0, 1))
    return (head_p + tail * (1.0 + head_odds)).amin(-1).clamp(max=1.0)


def optimal_siblings(
    logp_BV: Tensor, logd_BNV: Tensor, token_BN: Tensor, child_BK: Tensor, siblings: Siblings
) -> Tensor:
    """The most that any rule can accept at one place of each row's tree, `[B]`; nothing where there are no children.

    Independent children: `optimal_acceptance`. Chosen ones: p's mass on them, and with one drawn from d beside them
    (`greedy`) `sum min(p, d)` more, d having no mass on them. Distinct ones: `optimal_pair`, for two at most.

    Args:
        logp_BV: the target's log-law at the place.
        logd_BNV: the log-law that each node was drawn from, given its elder siblings.
        token_BN: the nodes' tokens.
        child_BK: the place's children in the order they were drawn, -1 for none; see `Children`.
        siblings: how they were drawn; of `distinct` ones there are at most two.
    """
    there_BK, at_BK = child_BK >= 0, child_BK.clamp(min=0)
    logd_BV = at_position(logd_BNV, at_BK[:, 0])
    if siblings == "independent":
        best_B = optimal_acceptance(logp_BV, logd_BV, there_BK.sum(-1).clamp(min=1))
        return torch.where(there_BK[:, 0], best_B, 0.0)
    mass_BK = precise(logp_BV.gather(1, token_BN.gather(1, at_BK))).exp().masked_fill(~there_BK, 0.0)
    if siblings == "top":
        return mass_BK.sum(-1)
    if siblings == "distinct":
        first_B = overlap(logp_BV, logd_BV)
        if there_BK.shape[1] == 1:
            return torch.where(there_BK[:, 0], first_B, 0.0)
        most_B, next_B = logd_BV.topk(2).values.T
        settled_B = mass_BK[:, 0] + overlap(logp_BV, at_position(logd_BNV, at_BK[:, 1]))  # the first was certain
        pair_B = optimal_pair(logp_BV, logd_BV).to(settled_B.dtype)
        pair_B = torch.where(most_B - next_B > _CERTAIN, settled_B, pair_B)
        return torch.where(there_BK[:, 0], torch.where(there_BK[:, 1], pair_B, first_B), 0.0)
    return torch.where(there_BK[:, 0], overlap(logp_BV, logd_BV) + mass_BK[:, 1:].sum(-1), 0.0)


def recursive_acceptance(logp: Tensor, logq: Tensor, count: int) -> Tensor:
    """What recursive rejection accepts of K independent drafts, `[...]` from log-laws `[..., V]`.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]), torch.tensor([0.2, 0.4, 0.1, 0.3])
    >>> recursive_acceptance(p.log(), q.log(), 2), recursive_acceptance(p.log(), q.log(), 3)
    (tensor(0.7550), tensor(0.8190))
    """
    left, q = precise(logp).exp(), precise(logq).exp()
    refused = torch.ones_like(left[..., 0])
    for _ in range(count):
        excess = (left - q).clamp(min=0.0)
        total = excess.sum(-1)
        refused = refused * total
        left = excess / torch.where(total > 0, total, 1.0)[..., None]
    return 1.0 - refused


def greedy_draft_acceptance(logp: Tensor, logq: Tensor, count: int) -> Tensor:
    """What K - 1 top tokens D of q and one drawn from q off D get accepted, `[...]`: `p(D) + sum min(p, q')` off D.

    Hu et al. 2025, 2502.18779; at K = 2 Sun et al. 2024, SpecHub, 2411.05289.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]), torch.tensor([0.2, 0.4, 0.1, 0.3])
    >>> greedy_draft_acceptance(p.log(), q.log(), 2), greedy_draft_acceptance(p.log(), q.log(), 3)
    (tensor(0.8333), tensor(1.))
    """
    p, q = precise(logp).exp(), precise(logq).exp()
    top = torch.zeros_like(q, dtype=torch.bool).scatter_(-1, q.topk(count - 1).indices, True)
    rest = q.masked_fill(top, 0.0)
    total = rest.sum(-1, keepdim=True)
    rest = rest / torch.where(total > 0, total, 1.0)
    return torch.where(top, p, torch.minimum(p, rest)).sum(-1)
