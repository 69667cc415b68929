"""Recursive rejection of token trees with the fewest operations: two ways to the same decisions (floor 1).

From the root down only the children of the node that was reached are looked at, and what they leave of p is the law of
the token that follows. Of children that were chosen rather than drawn, all decisions follow from p's mass on them.
`tempspec.core.tree_verification` states the rules, and decides with every node's probability.

Axes: B batch, N nodes, V vocabulary, K children of one node, R children of all rows.
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
    weight_BV = probabilities(logp_BNV[:, 0])
    for level, (_, count) in enumerate(children.levels):
        child_BK = children.at(node_B)[:, :count]
        there_BK = (child_BK >= 0) & going_B1
        at_BK = child_BK.clamp(min=0)
        own_BK, weight_BV = _refused(weight_BV, logd_BNV, token_BN.gather(1, at_BK), at_BK, there_BK)
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


def _refused(
    law_BV: Tensor, logd_BNV: Tensor, token_BK: Tensor, at_BK: Tensor, there_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """The law r of each child's token when it is tried, `[B, K]`, and what all of them leave of r, `[B, V]`.

    After a child `r = (r - d)+`, normalised; r itself where nothing is left, or there is no such child.
    """
    rows, nodes = logd_BNV.shape[:2]
    first_B1 = torch.arange(0, rows * nodes, nodes, device=at_BK.device)[:, None]
    index_BK, logd_RV = first_B1 + at_BK, logd_BNV.flatten(0, 1)
    nothing_BK = torch.where(there_BK, 0.0, torch.inf)  # what is left of a law must exceed it to count
    own, parts = [], []
    for some in strips(rows, logd_BNV[:, : at_BK.shape[1]].flatten(1)):
        r_BV, tried = law_BV[some], []
        if not hosts.reads_free(r_BV) or bool(there_BK[some].any()):
            d_BKV = probabilities(logd_RV.index_select(0, index_BK[some].flatten())).unflatten(0, (len(r_BV), -1))
            for rank, d_BV in enumerate(d_BKV.unbind(1)):
                tried.append(r_BV.gather(1, token_BK[some, rank, None]))
                left_BV = (r_BV - d_BV).clamp_(min=0.0)
                total_B1 = left_BV.sum(-1, keepdim=True)
                r_BV = torch.where(total_B1 > nothing_BK[some, rank, None], left_BV.div_(total_B1), r_BV)
        own.append(torch.cat(tried, 1) if tried else torch.zeros_like(at_BK[some], dtype=r_BV.dtype))
        parts.append(r_BV)
    return (own[0], parts[0]) if len(parts) == 1 else (torch.cat(own), torch.cat(parts))


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
