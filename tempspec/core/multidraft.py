"""Verification of several drafted tokens per position and of token trees, without its randomness (floor 1).

Siblings are tested in the order they were drawn, each against d, the law that it was drawn from given its elder
siblings: q itself for independent children, q without the elder ones for distinct children, certainty for children that
were chosen rather than drawn. The recursions below need no more than d, whatever the way to draw.

All coin probabilities and residuals are functions of the tree alone, so that a round needs its coins once and one draw.
Node order and the N + 1 convention: see `tempspec.core.trees`.

Axes: B batch, N nodes, V vocabulary, K children of one node; any leading axes where a shape is not named.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tempspec.core.sampling import one_hot_log
from tempspec.core.verification import at_position, of_token, precise, real, strips

Siblings = Literal["independent", "distinct", "top", "greedy"]
"""How the children of one node are drawn.

- `independent`: each from q; equal tokens keep subtrees of their own.
- `distinct`: from q without replacement, as Gumbel-top-k does (Kool et al. 2019, 1903.06059).
- `top`: the most likely tokens, in order; nothing is drawn.
- `greedy`: the K - 1 most likely tokens and one drawn from the rest of q, which is tested first (Hu et al. 2025,
  2502.18779; SpecHub at K = 2, 2411.05289).
"""

_NEWTON_STEPS = 10
_SAFE_GAP = 1e-14


# ---------------------------------------------------------------------------------------------------------------------
# Drawing siblings
# ---------------------------------------------------------------------------------------------------------------------


def is_drawn(siblings: Siblings, rank: int) -> bool:
    """Whether the child behind `rank` elder ones is drawn at random, rather than chosen."""
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


@dataclass(frozen=True, slots=True)
class TreeDecision:
    """What the coins of a tree decide between.

    Attributes:
        coin_BN: the probability of each node's coin, float64; 0 behind the row's length.
        weight_BNV: the law of the token that follows when a node is the last to be accepted, not normalised,
            `[B, N+1, V]`; the root's first.
    """

    coin_BN: Tensor
    weight_BNV: Tensor


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator`, 0 where the denominator is 0."""
    fine = denominator > 0
    return torch.where(fine, numerator / torch.where(fine, denominator, 1.0), 0.0)


def tree_decision(
    logp_BNV: Tensor, logd_BNV: Tensor, token_BN: Tensor, parent_BN: Tensor, length_B: Tensor, *, joint: bool
) -> TreeDecision:
    """Recursive rejection of a tree's nodes, each node alone or jointly with what hangs below it.

    At each node: `r = p` and `a` is how surely the node was reached; for each child (t, d) in order, the child is
    reached with `min(1, a r(t) / d(t))`, and otherwise `m = (a r - d)+`, `s = sum m`, `r = m / s`,
    `a = s / (s + 1 - a)`.

    - `joint=False` keeps a = 1 and tosses the coin on the way down (Miao et al. 2023, 2305.09781; without replacement
      Jeon et al. 2024, 2402.14160, and Chen et al. 2024, 2402.12374): see `trees.walk`.
    - `joint=True` tosses it on the way up, with what is left of a behind all children (Weng et al. 2025, traversal
      verification, 2505.12398): see `trees.first_from_leaves`. On a chain it equals block verification.

    Args:
        logp_BNV: the target's log-laws behind the root and every node, `[B, N+1, V]`.
        logd_BNV: the log-law that each node was drawn from, given its elder siblings.
        token_BN: the nodes' tokens.
        parent_BN: their parents.
        length_B: the first nodes that are real.
        joint: see above.
    """
    # The law at a node is kept as a m with m in weight_BNV and the factor in scale_BN, so that nothing is normalised.
    weight_BNV = precise(logp_BNV).exp()
    rows, places, vocabulary = weight_BNV.shape
    row_B, real_BN = torch.arange(rows, device=token_BN.device), real(token_BN, length_B)
    reach_BN = torch.ones(rows, places, dtype=torch.float64, device=token_BN.device)
    scale_BN, coin_BN = reach_BN.clone(), torch.zeros_like(token_BN, dtype=torch.float64)
    chance_BN = of_token(logd_BNV, token_BN).double().exp()
    flat_weight = weight_BNV.view(rows * places, vocabulary)
    d_BV = torch.empty_like(weight_BNV[:, 0])
    for node, (token_B, above_B) in enumerate(zip(token_BN.T, parent_BN.T + 1, strict=True)):
        at_B = row_B * places + above_B
        law_BV, reach_B, scale_B = flat_weight.index_select(0, at_B), reach_BN[row_B, above_B], scale_BN[row_B, above_B]
        own_B = law_BV.gather(1, token_B[:, None]).squeeze(1) * scale_B
        coin_BN[:, node] = _quotient(own_B, chance_BN[:, node]).clamp(max=1.0)
        if joint:
            reach_BN[:, node + 1] = scale_BN[:, node + 1] = coin_BN[:, node]
        torch.exp(precise(logd_BNV[:, node]), out=d_BV)
        scaled_B = torch.where(real_BN[:, node], scale_B, 0.0)  # nothing is left of what is not there
        excess_BV = d_BV.neg_().addcmul_(law_BV, scaled_B[:, None].to(law_BV.dtype)).clamp_(min=0.0)
        left_B = excess_BV.sum(-1).double()
        # Nothing is left of a = 1 only by rounding, or behind a child that is never rejected: the law stays as it is.
        changed_B = left_B > 0
        excess_BV.addcmul_(law_BV, (~changed_B)[:, None].to(law_BV.dtype))
        flat_weight.index_copy_(0, at_B, excess_BV)
        next_B = _quotient(left_B, left_B + 1.0 - reach_B)
        kept_B = torch.where(real_BN[:, node] & (reach_B < 1.0), 0.0, 1.0)
        reach_BN[row_B, above_B] = torch.where(changed_B, next_B, reach_B * kept_B)
        scale_BN[row_B, above_B] = torch.where(changed_B, _quotient(next_B, left_B), scale_B * kept_B)
    coin_BN = reach_BN[:, 1:] if joint else coin_BN
    return TreeDecision(torch.where(real_BN, coin_BN, 0.0), weight_BNV)


# ---------------------------------------------------------------------------------------------------------------------
# K-SEQ: Sun et al. 2023, SpecTr (2310.15141)
# ---------------------------------------------------------------------------------------------------------------------


def sequential_division(p: Tensor, q: Tensor, count: Tensor) -> Tensor:
    """K-SEQ's rho in [1, K], float64 `[...]`: `1 - (1 - beta)^K = rho beta` with `beta = sum min(p / rho, q)`.

    Newton's method, for `rho beta` is linear in rho between neighbouring values of p / q. Where it has not arrived, the
    value returned is too large, never too small: K-SEQ stays exact and accepts a little less.

    Args:
        p: the target's law, `[..., V]`.
        q: the draft's.
        count: K, at least 1, `[...]`.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]).double(), torch.tensor([0.2, 0.4, 0.1, 0.3]).double()
    >>> sequential_division(p, q, torch.tensor(2)), sequential_division(p, q, torch.tensor(3))
    (tensor(1.4603, dtype=torch.float64), tensor(1.7926, dtype=torch.float64))
    """
    count = count.double()
    scaled, least = torch.empty_like(p), torch.empty_like(p)
    low, high = torch.ones_like(count), count.clone()
    following = (low + high) / 2
    for _ in range(_NEWTON_STEPS):
        rho = following
        torch.mul(q, rho[..., None].to(q.dtype), out=scaled)
        both = torch.minimum(p, scaled, out=least).sum(-1).double()  # rho beta
        tail = torch.mul(q, p >= scaled, out=least).sum(-1).double()  # its slope
        beta = (both / rho).clamp(max=1.0)
        gap = 1.0 - (1.0 - beta) ** count - both
        slope = -count * (1.0 - beta) ** (count - 1.0) * (both - rho * tail) / rho**2 - tail
        low, high = torch.where(gap >= 0, rho, low), torch.where(gap <= 0, rho, high)
        newton = rho + _quotient(gap, -slope)
        following = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
    return torch.where(gap > _SAFE_GAP, high, rho)


def sequential_beta(p: Tensor, q: Tensor, rho: Tensor) -> Tensor:
    """`sum min(p / rho, q)`, what one draft of K-SEQ is accepted with; float64 `[...]`."""
    return torch.minimum(p / rho[..., None].to(p.dtype), q).sum(-1).double().clamp(max=1.0)


def sequential_residual(p: Tensor, q: Tensor, rho: Tensor, count: Tensor) -> Tensor:
    """K-SEQ's law behind K failures, not normalised, `[..., V]`; p itself where nothing is left."""
    beta = sequential_beta(p, q, rho)
    accepted = _quotient(1.0 - (1.0 - beta) ** count, beta)[..., None].to(p.dtype)
    left = (p - accepted * torch.minimum(p / rho[..., None].to(p.dtype), q)).clamp(min=0.0)
    return torch.where((left > 0).any(-1, keepdim=True), left, p)


def sequential_decision(
    logp_BNV: Tensor, logq_BNV: Tensor, token_BN: Tensor, parent_BN: Tensor, length_B: Tensor
) -> TreeDecision:
    """K-SEQ at every node of a tree of independent children; coins are tossed on the way down.

    Arguments as in `tree_decision`; the law of a node's children is its first child's.
    """
    weight_BNV = precise(logp_BNV).exp()
    nodes = token_BN.shape[1]
    real_BN = real(token_BN, length_B)
    coin_BN = torch.zeros_like(token_BN, dtype=torch.float64)
    chance_BN = of_token(logq_BNV, token_BN).double().exp()
    child_BNN = (parent_BN[:, None] == torch.arange(-1, nodes, device=token_BN.device)[:, None]) & real_BN[:, None]
    count_BN = child_BNN.sum(-1)
    for above, most in enumerate(count_BN.amax(0).tolist()):  # one look at the shape
        if most == 0:
            continue
        child_BN, own_BN = child_BNN[:, above], torch.zeros_like(coin_BN)
        for rows in strips(logp_BNV):
            count_B, first_B = count_BN[rows, above], child_BN[rows].long().argmax(-1)
            p_BV, q_BV = weight_BNV[rows, above], precise(at_position(logq_BNV[rows], first_B)).exp()
            rho_B = torch.ones_like(count_B, dtype=torch.float64)
            if most > 1:
                rho_B = sequential_division(p_BV, q_BV, count_B.clamp(min=1))
            own_BN[rows] = p_BV.gather(1, token_BN[rows]).double() / rho_B[:, None]
            p_BV.copy_(sequential_residual(p_BV, q_BV, rho_B, count_B))
        accept_BN = _quotient(own_BN, chance_BN).clamp(max=1.0)
        coin_BN = torch.where(child_BN, accept_BN, coin_BN)
    return TreeDecision(coin_BN, weight_BNV)


# ---------------------------------------------------------------------------------------------------------------------
# One level: the chance that the emitted token is one of K drafts
# ---------------------------------------------------------------------------------------------------------------------


def optimal_acceptance(logp: Tensor, logq: Tensor, count: int) -> Tensor:
    """The most that any rule can accept of K independent drafts, `[...]` from log-laws `[..., V]`.

    `1 + min_H [p(H) - q(H)^K]` over the sets H of the tokens with the least p / q: the value of an optimal transport
    (Sun et al. 2023, 2310.15141; in this form Hu et al. 2025, 2502.18779).

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]), torch.tensor([0.2, 0.4, 0.1, 0.3])
    >>> optimal_acceptance(p.log(), q.log(), 2), optimal_acceptance(p.log(), q.log(), 3)
    (tensor(0.8600), tensor(0.9880))
    """
    p, q = precise(logp).exp(), precise(logq).exp()
    order = torch.where(q > 0, p / torch.where(q > 0, q, 1.0), torch.inf).argsort(-1)
    head_p, head_q = p.gather(-1, order).cumsum(-1), q.gather(-1, order).cumsum(-1)
    return (1.0 + (head_p - head_q.clamp(max=1.0) ** count).amin(-1)).clamp(max=1.0)


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


def sequential_acceptance(logp: Tensor, logq: Tensor, count: int) -> Tensor:
    """What K-SEQ accepts of K independent drafts by its own coins, `1 - (1 - beta)^K`, float64 `[...]`.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]), torch.tensor([0.2, 0.4, 0.1, 0.3])
    >>> sequential_acceptance(p.log(), q.log(), 2), sequential_acceptance(p.log(), q.log(), 3)
    (tensor(0.7881, dtype=torch.float64), tensor(0.8585, dtype=torch.float64))
    """
    p, q = precise(logp).exp(), precise(logq).exp()
    rho = sequential_division(p, q, torch.full(p.shape[:-1], count, device=p.device))
    return 1.0 - (1.0 - sequential_beta(p, q, rho)) ** count


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
