"""The built-in verifiers that change the text's distribution, each to one that it states (floor 3).

All but MARS and Typical put a substitute pi in the target's place and verify token by token: a tested position is
emitted with pi, the bonus token with p. `tempspec.core.lossy.distance` of
`emitted_law` says how far that is from the target.

Axes: B batch, K drafted, V vocabulary. Inside `verify`, `logp_BKV` is `[B, K+1, V]`.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from tempspec.core import acceptance, lossy
from tempspec.core import verification as core
from tempspec.core.noise import Stream
from tempspec.errors import UserError
from tempspec.interfaces import Draft, Noise, Verdict, Verifier

__all__ = ["MARS", "Ensemble", "KLBudget", "Lenience", "SpeculativeCascade", "Typical"]


def _in_range(rule: str, name: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise UserError(f"{rule}: {name} must be in [{least:g}, {most:g}], got {value}")
    return value


class _Substitute(Verifier):
    """Token-wise rejection against a substitute for the target's distribution."""

    lossless: ClassVar[bool] = False

    @abstractmethod
    def emitted_law(self, logp_BKV: Tensor, logq_BKV: Tensor) -> Tensor:
        """See `Verifier.emitted_law`."""

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        real_BK1 = core.real(draft.token_BK, draft.length_B)[..., None]
        logpi_BKV = self.emitted_law(logp_BKV[:, :-1], draft.logq_BKV)
        logpi_BKV = torch.where(real_BK1, logpi_BKV, core.precise(logp_BKV[:, :-1]).to(logpi_BKV.dtype))
        logpi_BKV = torch.cat([logpi_BKV, core.precise(logp_BKV[:, -1:]).to(logpi_BKV.dtype)], 1)
        logpi_BK, logq_BK = core.of_token(logpi_BKV, draft.token_BK), core.of_token(draft.logq_BKV, draft.token_BK)
        accept_BK = noise.coins(core.acceptance_probability(logpi_BK, logq_BK))
        accepted_B = core.first_rejection(accept_BK, draft.length_B)
        weight_BV = core.next_weight(logpi_BKV, draft.logq_BKV, accepted_B, draft.length_B)
        return Verdict(accepted_B, noise.draw(weight_BV, Stream.RESIDUAL))

    def expected_acceptance(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`sum min(pi, q)`."""
        return acceptance.overlap(self.emitted_law(logp_BKV, draft.logq_BKV), draft.logq_BKV)


class Lenience(_Substitute):
    """Accepts with min(1, p / (l q)): the draft may exceed the target by 1/l. Lossy; nothing comes out above p / l.

    Args:
        lenience: l in (0, 1]; 1 is lossless.
    """

    formula = "accept x with min(1, p(x) / (l q(x)))"
    source: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192, appendix A.5"

    def __init__(self, lenience: float = 0.5) -> None:
        if not 0 < lenience <= 1:
            raise UserError(f"Lenience: lenience must be in (0, 1], got {lenience}; 1 is lossless")
        self.lenience = lenience

    def emitted_law(self, logp_BKV: Tensor, logq_BKV: Tensor) -> Tensor:
        """See `Verifier.emitted_law`."""
        return lossy.lenient(logp_BKV, logq_BKV, self.lenience)


class Ensemble(_Substitute):
    """Emits the mixture w p + (1 - w) q. Lossy: accepts 1 - w TV(p, q), at a distance of (1 - w) TV(p, q).

    Args:
        weight: w in [0, 1], the target's share; 1 is lossless.
    """

    formula = "emits pi = w p + (1 - w) q"
    source: ClassVar[str] = "Fu et al. 2025, Speculative Ensemble, arXiv 2502.01662"

    def __init__(self, weight: float = 0.5) -> None:
        self.weight = _in_range("Ensemble", "weight", weight, 0.0, 1.0)

    def emitted_law(self, logp_BKV: Tensor, logq_BKV: Tensor) -> Tensor:
        """See `Verifier.emitted_law`."""
        return lossy.mixture(logp_BKV, logq_BKV, self.weight)


class KLBudget(_Substitute):
    """Accepts the most that is possible within KL(pi || p) <= D of the target. Lossy, by at most D nats per token.

    Args:
        budget: D in nats, at least 0; 0 is lossless.
    """

    formula = "emits pi = clip(q, b p, a p), with KL(pi | p) <= D"
    source: ClassVar[str] = "the optimum of acceptance under a KL constraint: pi = clip(q, b p, a p)"

    def __init__(self, budget: float = 0.05) -> None:
        self.budget = _in_range("KLBudget", "budget", budget, 0.0, float("inf"))

    def emitted_law(self, logp_BKV: Tensor, logq_BKV: Tensor) -> Tensor:
        """See `Verifier.emitted_law`."""
        return lossy.budgeted(logp_BKV, logq_BKV, self.budget)


class SpeculativeCascade(_Substitute):
    """Leaves a position to the draft unless the target is surer by more than a share of their distance. Lossy.

    The target's distribution is taken where `max q < max p - tradeoff TV(p, q)`, and elsewhere the draft's own.

    Args:
        tradeoff: at least 0; larger leaves more to the draft.
    """

    formula = "emits pi = p where max q < max p - tradeoff TV(p, q), else q"
    source: ClassVar[str] = "Narasimhan et al. 2024, Faster Cascades via Speculative Decoding, arXiv 2405.19261"

    def __init__(self, tradeoff: float = 0.5) -> None:
        self.tradeoff = _in_range("SpeculativeCascade", "tradeoff", tradeoff, 0.0, float("inf"))

    def emitted_law(self, logp_BKV: Tensor, logq_BKV: Tensor) -> Tensor:
        """See `Verifier.emitted_law`."""
        return lossy.cascaded(logp_BKV, logq_BKV, self.tradeoff)


class MARS(Verifier):
    """Greedy matching that also accepts the runner-up where the target hardly prefers its best token. Lossy.

    For target temperature 0: a token is accepted if it is the target's most likely one, or the second where the
    ratio of the two largest logits exceeds theta (both positive). What follows is the most likely token.

    Args:
        theta: in [0, 1]; 1 is greedy matching but for exact ties.
    """

    formula = "accept x if it is first, or second with logits z_2 > theta z_1"
    lossless: ClassVar[bool] = False
    source: ClassVar[str] = "Song et al. 2026, MARS, arXiv 2601.15498"
    greedy_only: ClassVar[bool] = True
    reads_logits: ClassVar[bool] = True

    def __init__(self, theta: float = 0.9) -> None:
        self.theta = _in_range("MARS", "theta", theta, 0.0, 1.0)

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`; `logp_BKV` holds logits."""
        best = core.precise(logp_BKV).topk(min(2, logp_BKV.shape[-1]))
        first_BK, runner_BK = best.values[..., 0], best.values[..., -1]
        close_BK = ((runner_BK > 0) & (runner_BK > self.theta * first_BK))[:, :-1]
        top_BK = core.precise(logp_BKV).argmax(-1)
        runner_up_BK = (best.indices[:, :-1] == draft.token_BK[..., None]).any(-1)
        accept_BK = (top_BK[:, :-1] == draft.token_BK) | (close_BK & runner_up_BK)
        accepted_B = core.first_rejection(accept_BK, draft.length_B)
        return Verdict(accepted_B, top_BK.gather(1, accepted_B[:, None]).squeeze(1))


class Typical(Verifier):
    """Accepts every token that the target finds typical, whatever the draft's distribution. Lossy: changes the text.

    A token is accepted if `p(x) > min(epsilon, delta exp(-H(p)))`, H being p's entropy in nats; epsilon caps the
    threshold and delta scales it by the entropy. The token after a failure, and the bonus token, are drawn from p. With
    A the set of typical tokens, a tested position is emitted with `q 1[A] + (1 - q(A)) p`. The paper states the
    acceptance alone, for trees; what follows a failure is this package's choice.

    Args:
        epsilon: the threshold's cap, in [0, 1] (Medusa's `posterior_threshold`, 0.09).
        delta: the entropy's factor, at least 0 (Medusa's `posterior_alpha`, 0.3: the square root of epsilon).
    """

    formula = "accept x if p(x) > min(epsilon, delta exp(-H(p)))"
    lossless: ClassVar[bool] = False
    source: ClassVar[str] = "Cai et al. 2024, Medusa, arXiv 2401.10774, section 3.3.1"

    def __init__(self, epsilon: float = 0.09, delta: float = 0.3) -> None:
        if not 0 <= epsilon <= 1:
            raise UserError(f"Typical: epsilon must be in [0, 1], got {epsilon}; Medusa uses 0.09")
        if not 0 <= delta < float("inf"):
            raise UserError(f"Typical: delta must be 0 or more, got {delta}; Medusa uses 0.3")
        self.epsilon = epsilon
        self.delta = delta

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """See `Verifier.verify`."""
        accepted_B, weight_BV = core.typical_outcome(logp_BKV, draft.token_BK, draft.length_B, self.epsilon, self.delta)
        return Verdict(accepted_B, noise.draw(weight_BV, Stream.TARGET))

    def expected_acceptance(self, logp_BKV: Tensor, draft: Draft) -> Tensor:
        """`q(A)`: the draft's mass on typical tokens."""
        return self._kept(logp_BKV, draft.logq_BKV).sum(-1)

    def emitted_law(self, logp_BKV: Tensor, logq_BKV: Tensor) -> Tensor:
        """`q 1[A] + (1 - q(A)) p`."""
        kept_BKV = self._kept(logp_BKV, logq_BKV)
        left_BK1 = (1.0 - kept_BKV.sum(-1, keepdim=True)).clamp(min=0.0)  # rounding may leave less than nothing
        return (kept_BKV + left_BK1 * core.precise(logp_BKV).exp()).log()

    def _kept(self, logp_BKV: Tensor, logq_BKV: Tensor) -> Tensor:
        """`q 1[A]`, `[B, K, V]`."""
        logp_BKV = core.precise(logp_BKV)
        parts = (logp_BKV, core.probabilities(logp_BKV))
        threshold_BK = core.typical_log_threshold(*parts, self.epsilon, self.delta)
        return torch.where(logp_BKV > threshold_BK[..., None], core.precise(logq_BKV).exp(), 0.0)
