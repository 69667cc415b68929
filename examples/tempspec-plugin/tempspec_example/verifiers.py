"""A verifier that tempspec lacks. Axes: B batch, K drafted, V vocabulary; log-distributions are `[B, K+1, V]`."""

import math
from typing import ClassVar

from torch import Tensor

from tempspec.core.verification import first_rejection, of_token, precise
from tempspec.interfaces import Draft, Noise, Verdict, Verifier

__all__ = ["SpecVerification"]


class SpecVerification(Verifier):
    """Greedy matching that forgives: accepts one of the target's best tokens if its logit is close enough. Lossy.

    A drafted token is accepted if fewer than `best` tokens have a larger logit, and the largest exceeds its own by at
    most `gap`. What follows is the target's most likely token.
    With `best` 1 or `gap` 0 it is greedy matching, but for ties.

    Args:
        best: how many of the target's most likely tokens are good enough, at least 1.
        gap: the most nats that a token may be less likely than the best one, at least 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    lossless: ClassVar[bool] = False
    source: ClassVar[str] = "Xia et al. 2023, Speculative Decoding for Seq2seq Generation, arXiv 2203.16487"
    greedy_only: ClassVar[bool] = True
    reads_logits: ClassVar[bool] = True  # at temperature 0 only logits say how close a token was

    def __init__(self, best: int = 3, gap: float = 1.0) -> None:
        if best < 1:
            raise ValueError(f"best must be 1 or more, got {best}: 1 is greedy matching")
        if not 0 <= gap < math.inf:
            raise ValueError(f"gap must be 0 or more and finite, got {gap}: 1 nat is a factor of 2.7 in probability")
        self.best, self.gap = best, gap

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`; `logp_BKV` holds logits."""
        logits_BKV = precise(logp_BKV)
        drafted_BKV = logits_BKV[:, :-1]
        own_BK = of_token(drafted_BKV, draft.token_BK)
        rank_BK = (drafted_BKV > own_BK[..., None]).sum(-1)
        close_BK = drafted_BKV.amax(-1) - own_BK <= self.gap
        accepted_B = first_rejection((rank_BK < self.best) & close_BK, draft.length_B)
        following_B = logits_BKV.argmax(-1).gather(1, accepted_B[:, None]).squeeze(1)
        return Verdict(accepted_B, following_B)
