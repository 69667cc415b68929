"""Recursive rejection of token trees with the fewest operations: two ways to the same decisions (floor 1).

From the root down only the children of the node that was reached are looked at, and what they leave of p is the law of
the token that follows. Of children that were chosen rather than drawn, all decisions follow from p's mass on them.
`tempspec.core.tree_verification` states the rules, and decides with every node's probability.

Axes: B batch, N nodes, V vocabulary, K children of one node, R laws, X nodes of all rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tempspec.core import hosts
from tempspec.core.children import Children
from tempspec.core.trees import elder
from tempspec.core.verification import at_position, of_token, probabilities, quotient, strips


class Descent(NamedTuple):
    """Where recursive rejection ends.

    Attributes:
        node_B: the last accepted node of each row, -1 for none.
        depth_B: how many were accepted.
        weight_BV: the law of the token that follows, not normalised.
    """

    node_B: Tensor
    depth_B: Tensor
    weight_BV: Tensor


def descend(
    logp_BNV: Tensor, logd_BNV: Tensor, token_BN: Tensor, children: Children, toss: Callable[[Tensor], Tensor]
) -> Descent:
    """`trees.walk` by the coins of `tree_coins(joint=False)`, and `tree_weight` of where it ends.

    Args:
        logp_BNV: as in `tree_coins`.
        logd_BNV: as in `tree_coins`.
        token_BN: the nodes' tokens.
        children: who is whose child.
        toss: `probability_BN -> success_BN`, the same decisions at every call: see `tempspec.interfaces.Noise.coins`.
    """
    rows, nodes = token_BN.shape
    chance_BN = of_token(logd_BNV, token_BN).double().exp()
    coin_BN = torch.zeros(rows, nodes + 1, dtype=torch.float64, device=token_BN.device)  # the last takes what is none
    node_B, depth_B = token_BN.new_full((rows,), -1), token_BN.new_zeros(rows)
    going_B1 = token_BN.new_ones(rows, 1, dtype=torch.bool)
    weight_BV, logd_XV = probabilities(logp_BNV[:, 0]), logd_BNV.flatten(0, 1)
    start_B1 = torch.arange(rows, device=token_BN.device)[:, None] * nodes
    for level, (_, count) in enumerate(children.levels):
        child_BK = children.at(node_B)[:, :count]
        there_BK = (child_BK >= 0) & going_B1
        at_BK = child_BK.clamp(min=0)
        nothing_BK = torch.where(there_BK, 0.0, torch.inf)
        tried = token_BN.gather(1, at_BK), start_B1 + at_BK, nothing_BK
        own_BK, weight_BV, _ = refused(weight_BV, logd_XV, *tried)
        accept_BK = quotient(own_BK.double(), chance_BN.gather(1, at_BK)).clamp(max=1.0)
        coin_BN.scatter_(1, torch.where(there_BK, child_BK, nodes), accept_BK)
        hit_BK = toss(coin_BN[:, :nodes]).gather(1, at_BK) & there_BK
        first_B1 = torch.where(hit_BK, torch.arange(count, device=at_BK.device), count).amin(1, keepdim=True)
        going_B1 = first_B1 < count
        going_B = going_B1[:, 0]
        node_B = torch.where(going_B, child_BK.gather(1, first_B1.clamp(max=count - 1))[:, 0], node_B)
        depth_B = torch.where(going_B, level + 1, depth_B)
        weight_BV = torch.where(going_B1, probabilities(at_position(logp_BNV, node_B + 1)), weight_BV)
    return Descent(node_B, depth_B, weight_BV)


def refused(
    law_RV: Tensor,
    logd_XV: Tensor,
    token_RK: Tensor,
    node_RK: Tensor,
    nothing_RK: Tensor,
    spare_R1: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What children leave of laws, one after the other.

    After a child `r = (r - d)+`, normalised; r itself where nothing is left, or there is no such child. A law may have
    a mass that no child takes from, as if of one more token: what is normalised is both.

    Args:
        law_RV: the laws r.
        logd_XV: the log-laws that all nodes were drawn from.
        token_RK: the children's tokens.
        node_RK: their places in `logd_XV`.
        nothing_RK: 0 for a child, infinite for none: what is left must exceed it to count.
        spare_R1: the mass that no child takes from; None for 0.

    Returns:
        r of each child's token when it is tried, `[R, K]`, what all of them leave, and the spare mass in it.
    """
    own: list[Tensor] = []
    laws: list[Tensor] = []
    spares: list[Tensor] = []
    count = token_RK.shape[1]
    for some in strips(len(law_RV), law_RV, count):
        r_RV, tried, spare = law_RV[some], [], None if spare_R1 is None else spare_R1[some]
        if not hosts.reads_free(r_RV) or bool((nothing_RK[some] == 0).any()):
            d_RKV = probabilities(logd_XV.index_select(0, node_RK[some].flatten())).unflatten(0, (-1, count))
            for rank, d_RV in enumerate(d_RKV.unbind(1)):
                tried.append(r_RV.gather(1, token_RK[some, rank, None]))
                left_RV = (r_RV - d_RV).clamp_(min=0.0)
                total_R1 = left_RV.sum(-1, keepdim=True)
                total_R1 = total_R1 if spare is None else total_R1 + spare
                counts_R1 = total_R1 > nothing_RK[some, rank, None]
                r_RV = torch.where(counts_R1, left_RV.div_(total_R1), r_RV)
                spare = None if spare is None else torch.where(counts_R1, spare / total_R1, spare)
        own.append(torch.cat(tried, 1) if tried else torch.zeros_like(nothing_RK[some], dtype=r_RV.dtype))
        laws.append(r_RV)
        spares += [] if spare is None else [spare]
    return _joined(own), _joined(laws), _joined(spares) if spares else None


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def chosen_coins(step_BN: Tensor, parent_BN: Tensor, deepest: int) -> Tensor:
    """The coins of `tree_coins(joint=True)` for children that were chosen, float64 `[B, N]`; no law is looked at.

    With a how surely the parent is reached, p a node's `tree_verification.match_steps`, E that of its elder siblings
    and S that of its children: the node is reached with `b = a p / (1 - a E)`, and its coin succeeds with
    `b (1 - S) / (1 - b S)`, or with 1 where b is 1.

    Args:
        step_BN: `match_steps`.
        parent_BN: the nodes' parents.
        deepest: the length of the longest path, or more.

    >>> chosen_coins(torch.tensor([[0.5, 0.25, 0.5]]), torch.tensor([[-1, -1, 0]]), 2)
    tensor([[0.3333, 0.5000, 0.2500]], dtype=torch.float64)
    """
    step_BN, place_BN = step_BN.double(), parent_BN + 1
    elder_BN = (elder(parent_BN) * step_BN[:, None]).sum(-1).clamp(max=1.0)
    reach_BN = torch.ones_like(step_BN)
    for _ in range(deepest):  # right down to one level more each time
        above_BN = torch.nn.functional.pad(reach_BN, (1, 0), value=1.0).gather(1, place_BN)
        reach_BN = quotient(above_BN * step_BN, 1.0 - above_BN * elder_BN).clamp(max=1.0)
    under_BN = torch.nn.functional.pad(torch.zeros_like(step_BN), (1, 0)).scatter_add_(1, place_BN, step_BN)[:, 1:]
    under_BN = under_BN.clamp(max=1.0)
    left_BN = quotient(reach_BN * (1.0 - under_BN), 1.0 - reach_BN * under_BN)
    return torch.where(reach_BN < 1.0, left_BN, 1.0)
