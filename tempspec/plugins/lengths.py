"""The built-in draft lengths (floor 3).

Axes: B batch, V vocabulary.
"""

import math

from torch import Tensor

from tempspec.errors import UserError
from tempspec.interfaces import DraftLength

__all__ = ["ConfidenceThreshold", "FixedLength"]


class FixedLength(DraftLength):
    """Drafts the same number of tokens in every round.

    Args:
        tokens: K, at least 0.
    """

    def __init__(self, tokens: int = 4) -> None:
        if tokens < 0:
            raise UserError(f"FixedLength: tokens must be 0 or more, got {tokens}")
        self.longest = tokens


class ConfidenceThreshold(DraftLength):
    """Stops behind the first token that the draft gave a probability below the threshold; that token is kept.

    Keeping it is what leaves the text's law alone: dropping a token for its own probability would bias it. At draft
    temperature 0 the draft's law is one-hot, and nothing stops but the limit.

    Args:
        threshold: in [0, 1]; 0 never stops, 1 stops behind every token that was not certain.
        longest: the most tokens of a round, at least 0.
    """

    def __init__(self, threshold: float = 0.4, longest: int = 8) -> None:
        if not 0 <= threshold <= 1:
            raise UserError(f"ConfidenceThreshold: threshold must be in [0, 1], got {threshold}")
        if longest < 0:
            raise UserError(f"ConfidenceThreshold: longest must be 0 or more, got {longest}")
        self.threshold = threshold
        self.longest = longest

    def proceed(self, token_B: Tensor, logq_BV: Tensor) -> Tensor:
        """Whether `q(token) >= threshold`, bool `[B]`."""
        log_threshold = math.log(self.threshold) if self.threshold > 0 else -math.inf
        return logq_BV.gather(1, token_B[:, None]).squeeze(1) >= log_threshold
