"""The built-in divergences: each is a function of `tempspec.core.divergences` plus remembered options (floor 3).

Axes: B batch, T positions, V vocabulary.
"""

from typing import ClassVar, Literal

from torch import Tensor

from tempspec.core import divergences as core
from tempspec.interfaces import Divergence

__all__ = [
    "ForwardKL",
    "JensenShannon",
    "LKHybrid",
    "NegativeLogAcceptance",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "TotalVariation",
]

Scale = Literal["none", "gradient"]


class ForwardKL(Divergence):
    """Forward KL(p | q): the draft covers all that the target does; the usual distillation loss."""

    source = "Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network (arXiv 1503.02531)"

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.forward_kl`."""
        return core.forward_kl(logp_BTV, logq_BTV)


class ReverseKL(Divergence):
    """Reverse KL(q | p): the draft stays where the target is, at the cost of its smaller modes."""

    source = "Gu et al. 2024, MiniLLM: Knowledge Distillation of Large Language Models (arXiv 2306.08543)"

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.reverse_kl`."""
        return core.reverse_kl(logp_BTV, logq_BTV)


class JensenShannon(Divergence):
    """Generalised Jensen-Shannon divergence: bounded, between forward and reverse KL.

    Args:
        beta: the target's share of the mixture, strictly between 0 and 1; near 0 it acts like forward KL, near 1 like
            reverse KL.
        scale: `gradient` multiplies by T^2, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: beta is not between 0 and 1.
    """

    source = "Agarwal et al. 2024, On-Policy Distillation of Language Models (GKD, arXiv 2306.13649)"

    def __init__(self, beta: float = 0.5, scale: Scale = "none") -> None:
        super().__init__(scale)
        self.beta = _share("beta", beta)

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.jensen_shannon`."""
        return core.jensen_shannon(logp_BTV, logq_BTV, beta=self.beta)


class SkewKL(Divergence):
    """Skew KL(p | alpha p + (1 - alpha) q): forward KL, bounded by mixing some target into the draft.

    Args:
        alpha: the target's share of the mixture, strictly between 0 and 1.
        scale: `gradient` multiplies by T^2, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """

    source = "Ko et al. 2024, DistiLLM: Towards Streamlined Distillation for Large Language Models (arXiv 2402.03898)"

    def __init__(self, alpha: float = 0.1, scale: Scale = "none") -> None:
        super().__init__(scale)
        self.alpha = _share("alpha", alpha)

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.skew_kl`."""
        return core.skew_kl(logp_BTV, logq_BTV, alpha=self.alpha)


class SkewReverseKL(Divergence):
    """Skew reverse KL(q | (1 - alpha) p + alpha q): reverse KL, bounded by mixing some draft into the target.

    Args:
        alpha: the draft's share of the mixture, strictly between 0 and 1.
        scale: `gradient` multiplies by T^2, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """

    source = "Ko et al. 2024, DistiLLM: Towards Streamlined Distillation for Large Language Models (arXiv 2402.03898)"

    def __init__(self, alpha: float = 0.1, scale: Scale = "none") -> None:
        super().__init__(scale)
        self.alpha = _share("alpha", alpha)

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.skew_reverse_kl`."""
        return core.skew_reverse_kl(logp_BTV, logq_BTV, alpha=self.alpha)


class TotalVariation(Divergence):
    """Total variation, 1 - acceptance: what decoding loses, but a weak gradient for a draft that is still poor."""

    gradient_order: ClassVar[int] = 1
    source = (
        "Zhou et al. 2024, DistillSpec: Improving Speculative Decoding via Knowledge Distillation (arXiv 2310.08461)"
    )

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.total_variation`."""
        return core.total_variation(logp_BTV, logq_BTV)


class NegativeLogAcceptance(Divergence):
    """The negative log of the acceptance: total variation's gradient, grown where the acceptance is small."""

    gradient_order: ClassVar[int] = 1
    source = "Samarin et al. 2026, LK Losses: Direct Acceptance Rate Optimization (arXiv 2602.23881)"

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.negative_log_acceptance`."""
        return core.negative_log_acceptance(logp_BTV, logq_BTV)


class LKHybrid(Divergence):
    """LK hybrid: forward KL where the draft is poor, total variation where it is good, position by position.

    Args:
        eta: how fast the weight moves from forward KL to total variation as the acceptance grows, at least 0; the paper
            takes 3, and 10 for weak draft heads.
        scale: `gradient` multiplies each term by the power of T that keeps its gradient's size (T^2 for KL, T for total
            variation); `none` does not.

    Raises:
        ValueError: eta is negative or not finite.
    """

    source = "Samarin et al. 2026, LK Losses: Direct Acceptance Rate Optimization (arXiv 2602.23881)"

    def __init__(self, eta: float = 3.0, scale: Scale = "none") -> None:
        super().__init__(scale)
        if not 0 <= eta < float("inf"):
            raise ValueError(f"eta must be 0 or more and finite, got {eta}: 3 is the paper's, 0 is forward KL alone")
        self.eta = eta

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.lk_hybrid`."""
        return core.lk_hybrid(logp_BTV, logq_BTV, eta=self.eta)

    def __call__(self, logp_BTV: Tensor, logq_BTV: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """As `Divergence.__call__`, each term with its own power of the temperature."""
        factor = temperature if self.scale == "gradient" else 1.0
        return core.lk_hybrid(logp_BTV, logq_BTV, eta=self.eta, temperature=factor)


def _share(name: str, value: float) -> float:
    """A mixture weight, refused outside the open interval from 0 to 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must be strictly between 0 and 1, got {value}: its limits are ForwardKL or ReverseKL")
    return value
