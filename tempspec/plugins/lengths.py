"""The built-in draft lengths (floor 3).

Axes: B batch, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tempspec.core.acceptance import expected_tokens
from tempspec.errors import UserError
from tempspec.interfaces import DraftLength, LastRound, StepTimes

__all__ = ["SVIP", "AdaEDL", "ConfidenceThreshold", "FixedLength", "Goodput", "Heuristic"]


class FixedLength(DraftLength):
    """Drafts the same number of tokens in every round.

    Args:
        tokens: K, at least 0.
    """

    formula = "K = tokens"

    def __init__(self, tokens: int = 4) -> None:
        if tokens < 0:
            raise UserError(f"FixedLength: tokens must be 0 or more, got {tokens}")
        self.longest = tokens


class ConfidenceThreshold(DraftLength):
    """Stops after the first token that the draft gave a probability below the threshold; that token is kept.

    Keeping it is what leaves the text's distribution alone: dropping a token for its own probability would bias it. At
    draft temperature 0 the draft is certain, and only the limit stops it.

    Args:
        threshold: in [0, 1]; 0 never stops, 1 stops after every token that was not certain.
        longest: the most tokens of a round, at least 0.
    """

    formula = "stop after x if q(x) < threshold"

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


class Heuristic(DraftLength):
    """Two tokens more after a round that was accepted in full, one fewer after any other.

    Only finished rounds are looked at, so the text keeps the target's distribution. transformers' `heuristic` schedule.

    Args:
        first: the tokens of a first round, 1 to `longest`.
        longest: the most tokens of a round.
    """

    source = "no paper: transformers' heuristic schedule"
    formula = "K + 2 after a round that was accepted in full, else K - 1"

    def __init__(self, first: int = 5, longest: int = 16) -> None:
        if not 1 <= first <= longest:
            raise UserError(f"Heuristic: expected 1 <= first <= longest, got {first} and {longest}")
        self.first = first
        self.longest = longest

    def limit(self, last: LastRound) -> Tensor:
        """See `DraftLength.limit`."""
        adapted_B = torch.where(last.accepted_B == last.drafted_B, last.limit_B + 2, last.limit_B - 1)
        return torch.where(last.limit_B < 0, self.first, adapted_B.clamp(1, self.longest))


def _entropy(logq_BV: Tensor) -> Tensor:
    """The draft's entropy in nats, `[B]`."""
    return torch.special.entr(logq_BV.exp()).sum(-1)


def _acceptance_bound(logq_BV: Tensor, coefficient: float) -> Tensor:
    """`1 - sqrt(c H(q))`, `[B]`."""
    return 1.0 - (coefficient * _entropy(logq_BV)).sqrt()


_PRIOR_TOKENS = 8.0
"""How many tested tokens AdaEDL's goal weighs before a row's own acceptance."""


class AdaEDL(DraftLength):
    """Stops where the draft's entropy bounds acceptance low: after a token with `1 - sqrt(c H(q)) < lambda`.

    The bound is on the acceptance of the token just included, which is kept. Lambda moves with the row's acceptance
    rate so far, `lambda = threshold + gain (goal - rate)`: below the goal drafting stops earlier.
    The paper moves it too, by a moving average whose constants could not be found: this form is ours. Only finished
    rounds are looked at, so the text keeps the target's distribution.

    Args:
        coefficient: c, at least 0.
        threshold: lambda of a first round.
        longest: the most tokens of a round, at least 0.
        goal: the acceptance rate at which lambda stays, in [0, 1].
        gain: how far lambda moves, at least 0; 0 keeps it.
    """

    source = "Agrawal et al. 2024, AdaEDL (arXiv 2410.18351)"
    formula = "stop after x if 1 - sqrt(c H(q)) < threshold + gain (goal - acceptance so far)"

    def __init__(
        self,
        coefficient: float = 0.2,
        threshold: float = 0.3,
        longest: int = 8,
        goal: float = 0.7,
        gain: float = 0.5,
    ) -> None:
        if not 0 <= coefficient < math.inf:
            raise UserError(f"AdaEDL: coefficient must be 0 or more, got {coefficient}")
        if longest < 0:
            raise UserError(f"AdaEDL: longest must be 0 or more, got {longest}")
        if not 0 <= goal <= 1:
            raise UserError(f"AdaEDL: goal must be in [0, 1], got {goal}")
        if not 0 <= gain < math.inf:
            raise UserError(f"AdaEDL: gain must be 0 or more, got {gain}")
        self.coefficient = coefficient
        self.threshold = threshold
        self.longest = longest
        self.goal = goal
        self.gain = gain

    def thresholds(self, last: LastRound) -> Tensor:
        """Lambda of each row, `[B]`; the rate is smoothed by a prior of some tokens at the goal."""
        accepted_B, tested_B = last.all_accepted_B.float(), last.all_tested_B.float()
        rate_B = (accepted_B + _PRIOR_TOKENS * self.goal) / (tested_B + _PRIOR_TOKENS)
        return self.threshold + self.gain * (self.goal - rate_B)

    def for_round(self, last: LastRound) -> DraftLength:
        """See `DraftLength.for_round`."""
        return _EntropyBound(self.coefficient, self.thresholds(last), self.longest)

    def proceed(self, token_B: Tensor, logq_BV: Tensor) -> Tensor:
        """See `DraftLength.proceed`; as in a first round."""
        return _acceptance_bound(logq_BV, self.coefficient) >= self.threshold


class _EntropyBound(DraftLength):
    """AdaEDL in one round: every row has its lambda."""

    def __init__(self, coefficient: float, threshold_B: Tensor, longest: int) -> None:
        self.coefficient = coefficient
        self.threshold_B = threshold_B
        self.longest = longest

    def proceed(self, token_B: Tensor, logq_BV: Tensor) -> Tensor:
        """See `DraftLength.proceed`."""
        return _acceptance_bound(logq_BV, self.coefficient) >= self.threshold_B.to(logq_BV.device)


class SVIP(DraftLength):
    """Stops after a token with `sqrt(H(q)) > h`: the draft was not sure; the token is kept.

    Args:
        threshold: h, at least 0.
        longest: the most tokens of a round, at least 0.
    """

    source = "Zhang et al. 2024, Draft Model Knows When to Stop (arXiv 2411.18462)"
    formula = "stop after x if sqrt(H(q)) > threshold"

    def __init__(self, threshold: float = 1.0, longest: int = 8) -> None:
        if not 0 <= threshold < math.inf:
            raise UserError(f"SVIP: threshold must be 0 or more, got {threshold}")
        if longest < 0:
            raise UserError(f"SVIP: longest must be 0 or more, got {longest}")
        self.threshold = threshold
        self.longest = longest

    def proceed(self, token_B: Tensor, logq_BV: Tensor) -> Tensor:
        """See `DraftLength.proceed`."""
        return _entropy(logq_BV).sqrt() <= self.threshold


_TYPICAL_DRAFT, _TYPICAL_GROWTH = 0.15, 0.05
"""A guess for an engine that nobody measured: a small draft, passes bound by memory."""


class Goodput(DraftLength):
    """The number of tokens that a row should gain most per second with, from measured step times; 0 is allowed.

    Per row the K that maximises `E[tokens(K)] / (c K + v(K))`, with acceptance estimated from the row's last round and
    a prior. The paper sums over the batch; here every row decides alone, so that its text does not depend on the batch.

    Without costs predict measures the pair's forward passes on full slots when it starts, and keeps them in the run's
    `step_times.json`; a continued run takes those. An engine of your own is told by `timed`; untold it assumes a draft
    step of 0.15 target steps, and passes that grow by 0.05 a token.

    Args:
        draft_cost: c, a draft step's time over a target step's; given together with `verify_costs` or not at all.
        verify_costs: v(0), v(1), ...: the time of verifying K drafted tokens over that of one target step.
        acceptance: the acceptance rate expected before anything is known, in [0, 1].
        confidence: how many tested tokens that expectation weighs, above 0.
        longest: the most tokens of a round, at least 0; given costs may allow fewer: K needs v(K).
    """

    source = "Liu et al. 2024, Optimizing Speculative Decoding for Serving Using Goodput (arXiv 2406.14066)"
    formula = "the K with the largest E[tokens(K)] / (c K + v(K))"

    def __init__(
        self,
        draft_cost: float | None = None,
        verify_costs: Sequence[float] | None = None,
        acceptance: float = 0.7,
        confidence: float = 4.0,
        longest: int = 8,
    ) -> None:
        if (draft_cost is None) != (verify_costs is None):
            raise UserError("Goodput: expected draft_cost and verify_costs, or neither (predict measures), got one")
        if draft_cost is not None and not 0 <= draft_cost < math.inf:
            raise UserError(f"Goodput: draft_cost must be 0 or more, got {draft_cost}")
        if verify_costs is not None and (not verify_costs or not 0 < min(verify_costs) <= max(verify_costs) < math.inf):
            raise UserError(f"Goodput: verify_costs must hold positive numbers, got {list(verify_costs)}")
        if not 0 <= acceptance <= 1:
            raise UserError(f"Goodput: acceptance must be in [0, 1], got {acceptance}")
        if not 0 < confidence < math.inf:
            raise UserError(f"Goodput: confidence must be above 0, got {confidence}")
        if longest < 0:
            raise UserError(f"Goodput: longest must be 0 or more, got {longest}")
        self.draft_cost = draft_cost
        self.verify_costs = None if verify_costs is None else tuple(verify_costs)
        self.acceptance = acceptance
        self.confidence = confidence
        self.longest = longest if verify_costs is None else min(longest, len(verify_costs) - 1)

    @property
    def needs_step_times(self) -> bool:
        """Whether no costs were given."""
        return self.verify_costs is None

    def timed(self, times: StepTimes) -> "Goodput":
        """See `DraftLength.timed`; costs are relative to a target pass that verifies nothing."""
        costs = [seconds / times.verify[0] for seconds in times.verify]
        return Goodput(times.draft / times.verify[0], costs, self.acceptance, self.confidence, self.longest)

    def limit(self, last: LastRound) -> Tensor:
        """See `DraftLength.limit`."""
        tested_B = torch.minimum(last.accepted_B + 1, last.drafted_B).clamp(min=0).double()
        accepted_B = last.accepted_B.clamp(min=0).double() + self.confidence * self.acceptance
        rate_B = accepted_B / (tested_B + self.confidence)
        rates = [expected_tokens(rate_B, count) / self._cost(count) for count in range(self.longest + 1)]
        return torch.stack(rates, -1).argmax(-1)

    def _cost(self, count: int) -> float:
        """The time of a round of so many drafted tokens, in target steps."""
        if self.draft_cost is None or self.verify_costs is None:
            grown = 1.0 + _TYPICAL_GROWTH * max(0, count - 1)
            return _TYPICAL_DRAFT * count + grown
        return self.draft_cost * count + self.verify_costs[count]
