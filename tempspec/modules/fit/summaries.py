"""What schedules may ask about tokens, from both models' logits, chunk by chunk (floor 5).

Axes: N tokens, V vocabulary, R the draft's own vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tempspec.core.divergences import entropy, forward_kl
from tempspec.core.sparse import SparseLogits
from tempspec.core.vocabulary import laws
from tempspec.errors import UserError
from tempspec.interfaces import Summary
from tempspec.modules.outputs import LogitPairs, Tokens, wide

__all__ = ["Summaries", "summaries"]


class Summaries(NamedTuple):
    """What schedules may ask about tokens, `[N]` each, None where not asked; laws at temperature 1."""

    entropy_N: Tensor | None = None
    loss_N: Tensor | None = None
    peak_p_N: Tensor | None = None
    peak_q_N: Tensor | None = None


@torch.no_grad()
def summaries(pairs: LogitPairs, needs: frozenset[Summary]) -> Summaries:
    """The summaries that a schedule needs, chunk by chunk.

    Raises:
        UserError: the target's side is a cache, which has no whole laws.
    """
    if isinstance(pairs.target, SparseLogits):
        raise UserError(f"a cached teacher has no {', '.join(sorted(needs))} for the temperature schedule")
    pairs = pairs.narrow()
    parts = [_summarise(pairs, tokens, needs) for tokens in pairs.chunks()]
    return Summaries(*(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)))


def _summarise(pairs: LogitPairs, tokens: Tokens, needs: frozenset[Summary]) -> Summaries:
    target = pairs.of_target(tokens, pairs.common)
    assert isinstance(target, Tensor)
    z_p_NV, z_q_NV = wide(target), wide(pairs.of_draft(tokens, pairs.common))
    logp_NV = z_p_NV.log_softmax(-1) if needs & {"entropy", "loss"} else None
    return Summaries(
        entropy(logp_NV) if logp_NV is not None and "entropy" in needs else None,
        _loss(logp_NV, z_q_NV.log_softmax(-1), pairs.ids_R) if logp_NV is not None and "loss" in needs else None,
        *((z.amax(-1) - z.mean(-1)) if "peaks" in needs else None for z in (z_p_NV, z_q_NV)),
    )


def _loss(logp_NV: Tensor, logq_NV: Tensor, ids_R: Tensor | None) -> Tensor:
    """Forward KL, `[N]`, over the draft's ids where it knows some alone."""
    both = (logp_NV, logq_NV) if ids_R is None else laws(logp_NV, logq_NV, ids_R, renormalised=True)
    return forward_kl(*both)
