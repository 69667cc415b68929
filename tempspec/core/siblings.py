"""The laws of siblings, one after the other, with what they share computed once (floor 1).

`tree_verification.sibling_law` is their definition. Where nothing of q is left, the best other tokens follow: they get
log-weights so low that they count only then.

Axes: V vocabulary, K children of one node; any leading axes.
"""

from functools import cache

import torch
from torch import Tensor

from tempspec.core.sampling import one_hot_log
from tempspec.core.tree_verification import Siblings

_NEVER = -1e30
"""The log-weight of a token that counts only where no other is left; the next one's is as far below it."""


class SiblingLaws:
    """The laws of the children of nodes, in the order they are drawn.

    Args:
        logq: the draft's log-law at each node, `[..., V]`.
        score: ranks tokens for what is not drawn; finite.
        count: K, all children of a node.
        siblings: how they are drawn.

    >>> laws = SiblingLaws(torch.tensor([0.5, 0.3, 0.2]).log(), torch.zeros(3), 2, "distinct")
    >>> laws.take(torch.tensor(0))
    >>> laws.law(1).exp()
    tensor([0.0000, 0.6000, 0.4000])
    """

    def __init__(self, logq: Tensor, score: Tensor, count: int, siblings: Siblings) -> None:
        self._vocabulary, self._siblings, self._left = logq.shape[-1], siblings, logq
        few = min(count, self._vocabulary)
        if siblings in ("top", "greedy"):
            self._order = score.topk(few).indices
        if siblings == "greedy":
            left = logq.scatter(-1, self._order[..., : few - 1], -torch.inf)
            spare = torch.full_like(self._order[..., :1], _NEVER, dtype=logq.dtype)
            self._left = left.scatter_reduce_(-1, self._order[..., -1:], spare, "amax")
        if siblings == "distinct":
            best = score.masked_fill(logq > -torch.inf, -torch.inf).topk(few)
            spare = torch.where(best.values > -torch.inf, _spares(few, logq.dtype, logq.device), -torch.inf)
            self._left = logq.scatter_reduce(-1, best.indices, spare, "amax")

    def law(self, rank: int) -> Tensor:
        """The log-law of the child after `rank` elder ones, which were taken, `[..., V]`; see `cleaned`."""
        if self._siblings == "independent":
            return self._left
        if self._siblings == "distinct":
            if rank < self._vocabulary:
                return self._left.log_softmax(-1)
            return one_hot_log(torch.zeros_like(self._left[..., 0], dtype=torch.int64), self._vocabulary)
        if self._siblings == "greedy" and rank == 0:
            return self._left.log_softmax(-1)
        return one_hot_log(self.chosen(rank), self._vocabulary, self._left.dtype)

    def chosen(self, rank: int) -> Tensor:
        """The token of a child that is not drawn, `[...]`."""
        place = rank if self._siblings == "top" else rank - 1
        return self._order[..., min(place, self._order.shape[-1] - 1)]

    def take(self, token: Tensor) -> None:
        """A child has been drawn, `[...]`."""
        if self._siblings == "distinct":
            self._left = self._left.scatter(-1, token[..., None], -torch.inf)


def cleaned(law: Tensor) -> Tensor:
    """Laws without the log-weights of tokens that did not count, in place."""
    return law.masked_fill_(law <= _NEVER / 2, -torch.inf)


@cache
def _spares(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The log-weights of the tokens that follow where nothing is left."""
    return _NEVER * torch.arange(1, count + 1, dtype=dtype, device=device)
