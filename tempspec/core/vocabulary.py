"""A draft that knows some of the target's tokens alone: which, how much of the target they hold, its law (floor 1).

The draft's law over the target's vocabulary has exact zeros at all other tokens. What is called acceptance compares it
with the target's whole law: a target that is renormalised over the draft's tokens would flatter the draft.

Axes: N positions, V the target's vocabulary, R the draft's, T temperatures, C cells of a law; any leading ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tempspec.core.acceptance import tempered

__all__ = [
    "counted",
    "coverage",
    "differences",
    "draft_ids",
    "draft_law",
    "from_differences",
    "laws",
    "members",
    "most_frequent",
    "target_law",
    "widened",
]


def counted(token: Tensor, kept: Tensor, vocabulary: int) -> Tensor:
    """How often each id occurs among the tokens that are kept, int64 `[V]`; those of several batches add up.

    Args:
        token: int64, any shape.
        kept: bool, the same shape.
        vocabulary: V.

    >>> counted(torch.tensor([1, 1, 2, 0]), torch.tensor([True, True, True, False]), 4)
    tensor([0, 2, 1, 0])
    """
    return torch.bincount(token[kept], minlength=vocabulary)


def most_frequent(count_V: Tensor, size: int) -> Tensor:
    """The ids that occur most often, ascending, int64 `[R]`; of equal counts the lower ids.

    Args:
        count_V: how often each id occurs, int64.
        size: R, at most V.

    >>> most_frequent(torch.tensor([0, 5, 2, 2]), 2)
    tensor([1, 2])
    """
    return count_V.argsort(descending=True, stable=True)[:size].sort().values


def differences(ids_R: Tensor) -> Tensor:
    """The target's id less the draft's, int64 `[R]`: what heads' files call d2t.

    >>> differences(torch.tensor([1, 2, 5]))
    tensor([1, 1, 3])
    """
    return ids_R - torch.arange(len(ids_R), device=ids_R.device)


def from_differences(difference_R: Tensor) -> Tensor:
    """The target's ids of a d2t, int64 `[R]`.

    >>> from_differences(torch.tensor([1, 1, 3]))
    tensor([1, 2, 5])
    """
    return difference_R + torch.arange(len(difference_R), device=difference_R.device)


def members(ids_R: Tensor, vocabulary: int) -> Tensor:
    """Whether the draft knows each of the target's ids, bool `[V]`: what heads' files call t2d.

    >>> members(torch.tensor([1, 2]), 4)
    tensor([False,  True,  True, False])
    """
    return torch.zeros(vocabulary, dtype=torch.bool, device=ids_R.device).index_fill_(0, ids_R, True)


def draft_ids(token: Tensor, ids_R: Tensor) -> Tensor:
    """The draft's ids of the target's tokens, int64 `[...]`; R where it has none.

    >>> draft_ids(torch.tensor([2, 3, 5]), torch.tensor([1, 2, 5]))
    tensor([1, 3, 2])
    """
    place = torch.searchsorted(ids_R, token).clamp(max=len(ids_R) - 1)
    return torch.where(ids_R[place] == token, place, len(ids_R))


def widened(logits_NR: Tensor, ids_R: Tensor, vocabulary: int) -> Tensor:
    """Logits, or log-laws, over the target's vocabulary, `[..., V]`: -inf at ids that the draft lacks.

    >>> widened(torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), 4)
    tensor([1., -inf, 2., -inf])
    """
    whole_NV = logits_NR.new_full((*logits_NR.shape[:-1], vocabulary), -torch.inf)
    return whole_NV.index_copy(-1, ids_R, logits_NR)


def coverage(logits_p_NV: Tensor, ids_R: Tensor, temperatures: Sequence[float]) -> Tensor:
    """The mass that the target's law gives to the draft's tokens, `[N, T]`: no draft of them is accepted more often.

    Args:
        logits_p_NV: the target's logits.
        ids_R: the draft's ids.
        temperatures: at least 0 each.

    >>> coverage(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0, 2]), [0.0, 1.0])
    tensor([[1.0000, 0.5000]])
    """
    return torch.stack([law_NV[..., ids_R].sum(-1) for law_NV in tempered(logits_p_NV, temperatures)], -1)


def laws(logp_NV: Tensor, logq_NR: Tensor, ids_R: Tensor, *, renormalised: bool) -> tuple[Tensor, Tensor]:
    """Both log-laws on the same cells, `[..., C]` each, for a divergence.

    Args:
        logp_NV: the target's.
        logq_NR: the draft's, over its own ids.
        ids_R: these ids.
        renormalised: restrict the target's law to the draft's ids, for divergences that are infinite where the draft
            has no mass. Otherwise one more cell holds the target's mass elsewhere, and the draft's is 0 there.

    >>> logp, logq = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
    >>> laws(logp, logq, torch.tensor([0, 1]), renormalised=True)[0].exp()
    tensor([0.6667, 0.3333])
    >>> [law.exp() for law in laws(logp, logq, torch.tensor([0, 1]), renormalised=False)]
    [tensor([0.5000, 0.2500, 0.2500]), tensor([0.5000, 0.5000, 0.0000])]
    """
    logp_NC = target_law(logp_NV, ids_R, renormalised=renormalised)
    return logp_NC, draft_law(logq_NR, renormalised=renormalised)


def target_law(logp_NV: Tensor, ids_R: Tensor, *, renormalised: bool) -> Tensor:
    """The target's side of `laws`, `[..., C]`."""
    own_NR = logp_NV[..., ids_R]
    if renormalised:
        return own_NR.log_softmax(-1)
    rest_N1 = logp_NV.index_fill(-1, ids_R, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([own_NR, rest_N1], -1)


def draft_law(logq_NR: Tensor, *, renormalised: bool) -> Tensor:
    """The draft's side of `laws`, `[..., C]`."""
    return logq_NR if renormalised else torch.nn.functional.pad(logq_NR, (0, 1), value=-torch.inf)
