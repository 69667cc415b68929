"""K-SEQ: one division of the target's law serves all of K independent drafts, without its randomness (floor 1).

Sun et al. 2023, SpecTr, 2310.15141. In trees it is applied node by node, from the root down; node order and the N + 1
convention: see `tempspec.core.trees`.

Axes: B batch, N nodes, V vocabulary, K children of one node, R places of all rows; any leading axes where a shape is
not named.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tempspec.core.children import Children
from tempspec.core.verification import at_position, of_token, precise, probabilities, quotient, real, strips

_NEWTON_STEPS = 6
_LEAST = 1e-12
"""Masses below this count as this, so that nothing is divided by 0."""


def sequential_division(p: Tensor, q: Tensor, count: Tensor) -> Tensor:
    """K-SEQ's rho in [1, K], float64 `[...]`: `1 - (1 - beta)^K = rho beta` with `beta = sum min(p / rho, q)`.

    Newton's method, for `rho beta` is linear in rho between neighbouring values of p / q. Each step gives two bounds
    as well, `_enclosed`: the next rho lies between them, and the last upper one is returned. Where the steps have not
    arrived it is too large, never too small: K-SEQ stays exact and accepts a little less.

    Args:
        p: the target's law, `[..., V]`.
        q: the draft's.
        count: K, at least 1, `[...]`.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]).double(), torch.tensor([0.2, 0.4, 0.1, 0.3]).double()
    >>> sequential_division(p, q, torch.tensor(2)), sequential_division(p, q, torch.tensor(3))
    (tensor(1.4603, dtype=torch.float64), tensor(1.7926, dtype=torch.float64))
    """
    count = count.double()
    others, root, low, high = count - 1.0, 1.0 / count, torch.ones_like(count), count
    rho = (0.875 + count / 16.0).clamp(1.0, 1.5)  # few steps are left from here for most laws
    room = p.new_empty(2, *p.shape)
    for _ in range(_NEWTON_STEPS):
        both, tail = _masses(p, q, rho, room)
        beta = both / rho
        failed = 1.0 - beta
        power = failed**others
        some = 1.0 - failed * power
        low, high = _enclosed(some, beta, both, root, low, high)
        slope = torch.addcdiv(tail, count * power * (beta - tail), rho)
        rho = torch.addcdiv(rho, some - both, slope).clamp(low, high)
    both, _ = _masses(p, q, rho, room)
    beta = both / rho
    return _enclosed(1.0 - (1.0 - beta) ** count, beta, both, root, low, high)[1]


def _masses(p: Tensor, q: Tensor, rho: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """`rho beta = sum min(p, rho q)` and its slope, the mass of q where that is less; float64 `[...]` each."""
    scaled = q * rho[..., None].to(q.dtype)
    torch.minimum(p, scaled, out=room[0])
    torch.mul(q, p >= scaled, out=room[1])
    both, slope = room.sum(-1).double().clamp(_LEAST, 1.0)
    return both, slope


def _enclosed(
    some: Tensor, beta: Tensor, both: Tensor, root: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds of the rho sought, narrowed by what some rho gives; float64 `[...]` each.

    Two forms of its equation: `rho = (1 - (1 - beta)^K) / beta`, whose right side rises with rho, and with
    `b = rho beta` also `rho = b / (1 - (1 - b)^(1/K))`, whose right side falls. What they give lies on both sides.

    Args:
        some: `1 - (1 - beta)^K`.
        beta: at that rho.
        both: b, there.
        root: 1/K.
        low: the bounds so far.
        high: likewise.
    """
    rising, falling = some / beta, both / (1.0 - (1.0 - both) ** root)
    return low.maximum(torch.minimum(rising, falling)), high.minimum(torch.maximum(rising, falling))


def sequential_beta(p: Tensor, q: Tensor, rho: Tensor) -> Tensor:
    """`sum min(p / rho, q)`, what one draft of K-SEQ is accepted with; float64 `[...]`."""
    return torch.minimum(p / rho[..., None].to(p.dtype), q).sum(-1).double().clamp(max=1.0)


def sequential_residual(p: Tensor, q: Tensor, rho: Tensor, count: Tensor) -> Tensor:
    """K-SEQ's law after K failures, not normalised, `[..., V]`; p itself where nothing is left."""
    least = torch.minimum(p / rho[..., None].to(p.dtype), q)
    beta = least.sum(-1).double().clamp(max=1.0)
    accepted = quotient(1.0 - (1.0 - beta) ** count, beta)[..., None].to(p.dtype)
    left = (p - accepted * least).clamp_(min=0.0)
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
    row_R, place_R = _branching(tuple(children.most), rows, rho_BN.device)
    if len(row_R) == 0:
        return rho_BN
    child_RK = children.node_BNK[row_R, place_R]
    count_R, first_R = (child_RK >= 0).sum(-1).clamp(min=1), child_RK[:, 0].clamp(min=0)
    parts = []
    for part in strips(len(row_R), logp_BNV):
        p_RV = probabilities(at_position(logp_BNV, place_R[part], row_R[part]))
        q_RV = probabilities(at_position(logq_BNV, first_R[part], row_R[part]))
        parts.append(sequential_division(p_RV, q_RV, count_R[part]))
    return rho_BN.index_put_((row_R, place_R), torch.cat(parts))


@lru_cache(256)
def _branching(most: tuple[int, ...], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of all rows the places where some row has two children: whose, and which, `[R]` each."""
    wanted = [place for place, count in enumerate(most) if count > 1]
    place_R = torch.tensor(wanted, dtype=torch.int64, device=device).repeat(rows)
    return torch.arange(rows, device=device).repeat_interleave(len(wanted)), place_R


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
