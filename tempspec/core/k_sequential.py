"""K-SEQ: one division of the target's law serves all of K independent drafts, without its randomness (floor 1).

Sun et al. 2023, SpecTr, 2310.15141. In trees it is applied node by node, from the root down; node order and the N + 1
convention: see `tempspec.core.trees`.

Axes: B batch, N nodes, V vocabulary, K children of one node, R places of all rows; any leading axes where a shape is
not named.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tempspec.core.children import Children
from tempspec.core.verification import at_position, of_token, precise, probabilities, quotient, real, strips

_NEWTON_STEPS = 10
_ROUNDINGS = 64
"""A gap of so many roundings of the laws' precision counts as none."""


def sequential_division(p: Tensor, q: Tensor, count: Tensor) -> Tensor:
    """K-SEQ's rho in [1, K], float64 `[...]`: `1 - (1 - beta)^K = rho beta` with `beta = sum min(p / rho, q)`.

    Newton's method, for `rho beta` is linear in rho between neighbouring values of p / q. Where it has not arrived, the
    value returned is too large, never too small: K-SEQ stays exact and accepts a little less. It stays where the laws'
    own rounding hides any gap, for a sign that is noise would send it far away.

    Args:
        p: the target's law, `[..., V]`.
        q: the draft's.
        count: K, at least 1, `[...]`.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]).double(), torch.tensor([0.2, 0.4, 0.1, 0.3]).double()
    >>> sequential_division(p, q, torch.tensor(2)), sequential_division(p, q, torch.tensor(3))
    (tensor(1.4603, dtype=torch.float64), tensor(1.7926, dtype=torch.float64))
    """
    count, hidden = count.double(), _ROUNDINGS * torch.finfo(p.dtype).eps
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
        newton = rho + quotient(gap, -slope)
        following = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        following = torch.where(gap.abs() <= hidden, rho, following)
    return torch.where(gap > hidden, high, rho)


def sequential_beta(p: Tensor, q: Tensor, rho: Tensor) -> Tensor:
    """`sum min(p / rho, q)`, what one draft of K-SEQ is accepted with; float64 `[...]`."""
    return torch.minimum(p / rho[..., None].to(p.dtype), q).sum(-1).double().clamp(max=1.0)


def sequential_residual(p: Tensor, q: Tensor, rho: Tensor, count: Tensor) -> Tensor:
    """K-SEQ's law after K failures, not normalised, `[..., V]`; p itself where nothing is left."""
    beta = sequential_beta(p, q, rho)
    accepted = quotient(1.0 - (1.0 - beta) ** count, beta)[..., None].to(p.dtype)
    left = (p - accepted * torch.minimum(p / rho[..., None].to(p.dtype), q)).clamp(min=0.0)
    return torch.where((left > 0).any(-1, keepdim=True), left, p)


@dataclass(frozen=True, slots=True)
class SequentialCoins:
    """What K-SEQ's accept decisions are made with.

    Attributes:
        coin_BN: the probability that each node is accepted when it is tried, float64; 0 after the row's length.
        rho_BN: rho at every place, float64 `[B, N+1]`, the root's first.
        children: who is whose child.
    """

    coin_BN: Tensor
    rho_BN: Tensor
    children: Children


def sequential_coins(
    logp_BNV: Tensor,
    logq_BNV: Tensor,
    token_BN: Tensor,
    parent_BN: Tensor,
    length_B: Tensor,
    children: Children | None = None,
) -> SequentialCoins:
    """K-SEQ at every node of a tree of independent children; nodes are decided on the way down.

    Arguments as in `tempspec.core.tree_verification.tree_coins`; the law of a node's children is its first child's.
    """
    children = Children.of(parent_BN, length_B) if children is None else children
    rho_BN = _divisions(logp_BNV, logq_BNV, children)
    row_B1 = torch.arange(len(token_BN), device=token_BN.device)[:, None]
    own_BN = logp_BNV[row_B1, parent_BN + 1, token_BN].double().exp()
    chance_BN = of_token(logq_BNV, token_BN).double().exp() * rho_BN.gather(1, parent_BN + 1)
    accept_BN = quotient(own_BN, chance_BN).clamp(max=1.0)
    return SequentialCoins(torch.where(real(token_BN, length_B), accept_BN, 0.0), rho_BN, children)


def _divisions(logp_BNV: Tensor, logq_BNV: Tensor, children: Children) -> Tensor:
    """K-SEQ's rho at every place, float64 `[B, N+1]`; 1 where no row has two children. All places are found at once."""
    rows, places = children.node_BNK.shape[:2]
    rho_BN = torch.ones(rows, places, dtype=torch.float64, device=logp_BNV.device)
    wanted = [place for place, count in enumerate(children.most) if count > 1]
    if not wanted:
        return rho_BN
    place_R = torch.tensor(wanted, dtype=torch.int64, device=rho_BN.device).repeat(rows)
    row_R = torch.arange(rows, device=rho_BN.device).repeat_interleave(len(wanted))
    child_RK = children.node_BNK[row_R, place_R]
    count_R, first_R = (child_RK >= 0).sum(-1).clamp(min=1), child_RK[:, 0].clamp(min=0)
    parts = []
    for part in strips(len(row_R), logp_BNV):
        p_RV = probabilities(at_position(logp_BNV, place_R[part], row_R[part]))
        q_RV = probabilities(at_position(logq_BNV, first_R[part], row_R[part]))
        parts.append(sequential_division(p_RV, q_RV, count_R[part]))
    return rho_BN.index_put_((row_R, place_R), torch.cat(parts))


def sequential_weight(logp_BNV: Tensor, logq_BNV: Tensor, node_B: Tensor, coins: SequentialCoins) -> Tensor:
    """The law of the token that follows when `node_B` is the last to be accepted, not normalised, `[B, V]`.

    K-SEQ's residual after the node's children; p itself at a leaf.

    Args:
        logp_BNV: as in `sequential_coins`.
        logq_BNV: as in `sequential_coins`.
        node_B: the last accepted node of each row, -1 for none.
        coins: what `sequential_coins` returned.
    """
    if logq_BNV.shape[1] == 0:
        return probabilities(at_position(logp_BNV, node_B + 1))
    child_BK = coins.children.at(node_B)
    count_B, first_B = (child_BK >= 0).sum(-1), child_BK[:, 0].clamp(min=0)
    rho_B = coins.rho_BN.gather(1, node_B[:, None] + 1).squeeze(1)
    parts = []
    for rows in strips(len(logp_BNV), logp_BNV):
        p_BV = probabilities(at_position(logp_BNV[rows], node_B[rows] + 1))
        q_BV = probabilities(at_position(logq_BNV[rows], first_B[rows]))
        parts.append(sequential_residual(p_BV, q_BV, rho_B[rows], count_B[rows]))
    return torch.cat(parts)


def sequential_acceptance(logp: Tensor, logq: Tensor, count: int) -> Tensor:
    """What K-SEQ accepts of K independent drafts by its own rule, `1 - (1 - beta)^K`, float64 `[...]`.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]), torch.tensor([0.2, 0.4, 0.1, 0.3])
    >>> sequential_acceptance(p.log(), q.log(), 2), sequential_acceptance(p.log(), q.log(), 3)
    (tensor(0.7881, dtype=torch.float64), tensor(0.8585, dtype=torch.float64))
    """
    p, q = precise(logp).exp(), precise(logq).exp()
    rho = sequential_division(p, q, torch.full(p.shape[:-1], count, dtype=torch.int64, device=p.device))
    return 1.0 - (1.0 - sequential_beta(p, q, rho)) ** count
