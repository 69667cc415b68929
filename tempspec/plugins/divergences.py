"""The built-in divergences: each is a function of `tempspec.core.divergences` plus remembered options (floor 3).

Axes: B batch, T positions, V vocabulary.
"""

import copy
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tempspec.core import divergences as core
from tempspec.core.schedules import linear
from tempspec.errors import UserError
from tempspec.interfaces import Divergence, Exact, Kept, LossContext

__all__ = [
    "TAID",
    "AdaptiveKL",
    "AlphaBeta",
    "ForwardKL",
    "JensenShannon",
    "LKHybrid",
    "LabelCrossEntropy",
    "LogitDifference",
    "NegativeLogAcceptance",
    "NormalisedTotalVariation",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "TopKCrossEntropy",
    "TotalVariation",
    "WeightedSum",
]

Scale = Literal["none", "gradient"]


class ForwardKL(Divergence):
    """Forward KL(p | q): the draft covers all that the target does; the usual distillation loss."""

    formula = "sum p log(p / q)"
    cached = frozenset[Kept]({"top", "sampled"})
    source = "Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network (arXiv 1503.02531)"

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.forward_kl`."""
        return core.forward_kl(logp_BTV, logq_BTV)


class ReverseKL(Divergence):
    """Reverse KL(q | p): the draft stays where the target is, at the cost of its smaller modes."""

    formula = "sum q log(q / p)"
    cached = frozenset[Kept]({"top", "sampled"})
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

    formula = "beta KL(p | m) + (1 - beta) KL(q | m), with m = beta p + (1 - beta) q"
    cached = frozenset[Kept]({"top", "sampled"})
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

    formula = "KL(p | alpha p + (1 - alpha) q)"
    cached = frozenset[Kept]({"top", "sampled"})
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

    formula = "KL(q | (1 - alpha) p + alpha q)"
    cached = frozenset[Kept]({"top", "sampled"})
    source = "Ko et al. 2024, DistiLLM: Towards Streamlined Distillation for Large Language Models (arXiv 2402.03898)"

    def __init__(self, alpha: float = 0.1, scale: Scale = "none") -> None:
        super().__init__(scale)
        self.alpha = _share("alpha", alpha)

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.skew_reverse_kl`."""
        return core.skew_reverse_kl(logp_BTV, logq_BTV, alpha=self.alpha)


class TotalVariation(Divergence):
    """Total variation, 1 - acceptance: what decoding loses, but a weak gradient for a draft that is still poor."""

    formula = "1/2 sum |p - q|"
    gradient_order: ClassVar[int] = 1
    cached = frozenset[Kept]({"top", "sampled"})
    source = (
        "Zhou et al. 2024, DistillSpec: Improving Speculative Decoding via Knowledge Distillation (arXiv 2310.08461)"
    )

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.total_variation`."""
        return core.total_variation(logp_BTV, logq_BTV)


class NegativeLogAcceptance(Divergence):
    """The negative log of the acceptance: total variation's gradient, grown where the acceptance is small."""

    formula = "-log sum min(p, q)"
    gradient_order: ClassVar[int] = 1
    cached = frozenset[Kept]({"top"})
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

    formula = "w KL(p | q) + (1 - w) TV(p, q), with w = exp(-eta sum min(p, q))"
    cached = frozenset[Kept]({"top"})
    source = "Samarin et al. 2026, LK Losses: Direct Acceptance Rate Optimization (arXiv 2602.23881)"

    def __init__(self, eta: float = 3.0, scale: Scale = "none") -> None:
        super().__init__(scale)
        if not 0 <= eta < float("inf"):
            raise ValueError(f"eta must be 0 or more and finite, got {eta}: 3 is the paper's, 0 is forward KL")
        self.eta = eta

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.lk_hybrid`."""
        return core.lk_hybrid(logp_BTV, logq_BTV, eta=self.eta)

    def __call__(
        self,
        logp_BTV: Tensor,
        logq_BTV: Tensor,
        temperature: Tensor | float = 1.0,
        context: LossContext | None = None,
    ) -> Tensor:
        """As `Divergence.__call__`, each term with its own power of the temperature."""
        factor = temperature if self.scale == "gradient" else 1.0
        return core.lk_hybrid(logp_BTV, logq_BTV, eta=self.eta, temperature=factor)


class NormalisedTotalVariation(Divergence):
    """TVD++: total variation whose policy gradient has a normalised reward, so that it does not fade.

    Args:
        floor: the smallest standard deviation of the reward, above 0.
        scale: `gradient` multiplies by T, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: floor is not above 0.
    """

    formula = "TV(p, q) / max(floor, sqrt(m (1 - m))), with m = the sum of q where p > q"
    gradient_order: ClassVar[int] = 1
    source = (
        "Goel et al. 2024, Direct Alignment of Draft Model for Speculative Decoding with Chat-Fine-Tuned LLMs "
        "(TVD++, arXiv 2403.00858)"
    )

    def __init__(self, floor: float = 1e-2, scale: Scale = "none") -> None:
        super().__init__(scale)
        self.floor = _above_zero("floor", floor, "0.01 is a reward that differs once in 10,000 draws")

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.normalised_total_variation`."""
        return core.normalised_total_variation(logp_BTV, logq_BTV, floor=self.floor)


class AlphaBeta(Divergence):
    """Alpha-beta divergence: between forward KL, reverse KL and the squared distance, by two numbers.

    Args:
        alpha: how much the target's likely tokens lead, above 0; 1 with beta near 0 is forward KL.
        beta: how much the draft's likely tokens lead, above 0; 1 with alpha near 0 is reverse KL.
        scale: `gradient` multiplies by T^2, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: alpha or beta is not above 0.
    """

    formula = "-1 / (a b) sum (p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b))"
    source = "Wang et al. 2025, ABKD: Pursuing a Proper Allocation of the Probability Mass (arXiv 2505.04560)"

    def __init__(self, alpha: float = 0.2, beta: float = 0.7, scale: Scale = "none") -> None:
        super().__init__(scale)
        self.alpha = _above_zero("alpha", alpha, "its limit 0 is ReverseKL")
        self.beta = _above_zero("beta", beta, "its limit 0 is ForwardKL")

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.alpha_beta`."""
        return core.alpha_beta(logp_BTV, logq_BTV, alpha=self.alpha, beta=self.beta)


class AdaptiveKL(Divergence):
    """Adaptive KL: forward KL as far as the draft is wrong on the target's head, reverse KL as far as on its tail.

    Args:
        share: the target's mass that makes its head, strictly between 0 and 1.
        scale: `gradient` multiplies by T^2, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: share is not between 0 and 1.
    """

    formula = "h KL(p | q) + l KL(q | p), with h and l the shares of |p - q| on p's head and tail"
    source = "Wu et al. 2024, Rethinking Kullback-Leibler Divergence in Knowledge Distillation (arXiv 2404.02657)"

    def __init__(self, share: float = 0.5, scale: Scale = "none") -> None:
        super().__init__(scale)
        self.share = _share("share", share)

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.adaptive_kl`."""
        return core.adaptive_kl(logp_BTV, logq_BTV, share=self.share)


class TAID(Divergence, Exact):
    """TAID: forward KL to a teacher that moves from the draft to the target during the run.

    The target's share t rises on a straight line, or faster while the loss keeps falling; it is saved with the run.

    Args:
        start: t at the first step, above 0.
        end: t at `steps` and after it, at least `start` and at most 1.
        steps: the optimiser steps that the line takes; null takes the whole run.
        rate: how much faster t may rise; 0 is the straight line.
        memory: the momentum of the relative fall of the loss, in [0, 1).
        scale: `gradient` multiplies by T^2, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: an argument is out of its range.
    """

    formula = "KL(r | q), with r = softmax((1 - t) log q + t log p)"
    source = "Shing et al. 2025, TAID: Temporally Adaptive Interpolated Distillation (arXiv 2501.16937)"

    share: Tensor
    momentum: Tensor
    loss: Tensor

    def __init__(
        self,
        start: float = 0.4,
        end: float = 1.0,
        steps: int | None = None,
        rate: float = 5e-4,
        memory: float = 0.99,
        scale: Scale = "none",
    ) -> None:
        torch.nn.Module.__init__(self)
        Divergence.__init__(self, scale)
        checks = (
            (0 < start <= end <= 1, f"start and end must be 0 < start <= end <= 1, got {start} and {end}"),
            (steps is None or steps >= 1, f"steps must be 1 or more, got {steps}"),
            (0 <= rate < float("inf"), f"rate must be 0 or more and finite, got {rate}"),
            (0 <= memory < 1, f"memory must be in [0, 1), got {memory}"),
        )
        for fine, message in checks:
            if not fine:
                raise ValueError(message)
        self.start, self.end, self.steps, self.rate, self.memory = start, end, steps, rate, memory
        for name, value in (("share", start), ("momentum", 0.0), ("loss", torch.nan)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.interpolated_kl`; the share is the one reached so far."""
        return core.interpolated_kl(logp_BTV, logq_BTV, share=self.share)

    def in_context(self, logp_BTV: Tensor, logq_BTV: Tensor, context: LossContext) -> Tensor:
        """As `per_position`, with at least the straight line's share."""
        return core.interpolated_kl(logp_BTV, logq_BTV, share=self.share.clamp(min=self._line(context)))

    def observe(self, loss: Tensor, context: LossContext) -> None:
        """Raise the share by the paper's adaptive step."""
        loss = loss.detach().to(self.loss)
        fall = ((self.loss - loss) / self.loss.abs().clamp(min=1e-15)).nan_to_num(nan=0.0)
        self.momentum.mul_(self.memory).add_((1 - self.memory) * fall)
        share = self.share.clamp(min=self._line(context))
        self.share.copy_((share + self.rate * self.momentum.sigmoid() * (1 - share)).clamp(max=self.end))
        self.loss.copy_(loss)

    def _line(self, context: LossContext) -> float:
        steps = context.total_steps if self.steps is None else self.steps
        return (
            self.start if steps is None else linear(context.step, start=self.start, end=self.end, steps=max(steps, 1))
        )


class TopKCrossEntropy(Divergence):
    """Cross-entropy on the target's k most likely tokens; meant as a term next to a loss over the whole vocabulary.

    Args:
        k: how many tokens, at least 1.
        scale: `gradient` multiplies by T, which keeps the gradient's size when T changes; `none` does not.

    Raises:
        ValueError: k is below 1.
    """

    formula = "-sum p log q over the k largest p"
    gradient_order: ClassVar[int] = 1
    source = "Zhang et al. 2025, Learning Harmonized Representations for Speculative Sampling (HASS, arXiv 2408.15766)"

    def __init__(self, k: int = 10, scale: Scale = "none") -> None:
        super().__init__(scale)
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}: the paper takes 10")
        self.k = k

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.top_k_cross_entropy`."""
        return core.top_k_cross_entropy(logp_BTV, logq_BTV, k=self.k)


class LabelCrossEntropy(Divergence):
    """Cross-entropy with the text's own tokens: no distillation, or sequence-level distillation on the target's text.

    Args:
        scale: `gradient` multiplies by T, which keeps the gradient's size when T changes; `none` does not.
    """

    formula = "-log q(label)"
    gradient_order: ClassVar[int] = 1
    source = "Kim and Rush 2016, Sequence-Level Knowledge Distillation (arXiv 1606.07947)"

    def __init__(self, scale: Scale = "none") -> None:
        super().__init__(scale)

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """Refuse: distributions alone have no labels.

        Raises:
            UserError: always.
        """
        raise UserError("LabelCrossEntropy expected the text's tokens, got none: give a context with label_BT")

    def in_context(self, logp_BTV: Tensor, logq_BTV: Tensor, context: LossContext) -> Tensor:
        """See `tempspec.core.divergences.label_cross_entropy`.

        Raises:
            UserError: the context has no labels.
        """
        if context.label_BT is None:
            return self.per_position(logp_BTV, logq_BTV)
        return core.label_cross_entropy(logq_BTV, context.label_BT)


class LogitDifference(Divergence):
    """Differences between logits, as the variance of the log-ratio under the target: blind to shifts of the logits.

    Args:
        scale: `gradient` multiplies by T^2, which frees the loss of T but for its weights; `none` does not.
    """

    formula = "the variance of log q - log p under p"
    source = "Kim et al. 2025, Distillation of Large Language Models via Concrete Score Matching (arXiv 2509.25837)"

    def __init__(self, scale: Scale = "none") -> None:
        super().__init__(scale)

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """See `tempspec.core.divergences.logit_difference`."""
        return core.logit_difference(logp_BTV, logq_BTV)


class WeightedSum(Divergence, torch.nn.Module):
    """Several divergences at once, by names of your own; each keeps its own options.

    Args:
        terms: the divergences by name.
        weights: the weight of each, 0 or more and not all 0, by the same names; 1 each by default.
        scale: `gradient` gives every term the power of T that keeps its gradient's size; `none` leaves each term's own.

    Raises:
        ValueError: no terms, names that do not match, weights that are negative or not finite, or all 0.
    """

    formula = "the sum of weights[i] terms[i]"
    source = "Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network (arXiv 1503.02531)"

    def __init__(
        self, terms: dict[str, Divergence], weights: dict[str, float] | None = None, scale: Scale = "none"
    ) -> None:
        torch.nn.Module.__init__(self)
        Divergence.__init__(self, scale)
        weights = dict.fromkeys(terms, 1.0) if weights is None else weights
        if not terms or terms.keys() != weights.keys():
            raise ValueError(f"expected one weight for each term, got terms {sorted(terms)}, weights {sorted(weights)}")
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"weights must be 0 or more and finite, not all 0, got {weights}")
        self.terms, self.weights = dict(terms), {name: float(weights[name]) for name in terms}
        self.cached = frozenset.intersection(*(term.cached for term in terms.values()))
        for name, term in terms.items():
            if isinstance(term, torch.nn.Module):  # so that its state is saved with the run
                self.add_module(f"term_{name}", term)

    def per_position(self, logp_BTV: Tensor, logq_BTV: Tensor) -> Tensor:
        """The weighted sum without any temperature factor."""
        return self._sum(term.per_position(logp_BTV, logq_BTV) for term in self.terms.values())

    def observe(self, loss: Tensor, context: LossContext) -> None:
        """Hand the sum's loss to every term."""
        for term in self.terms.values():
            term.observe(loss, context)

    def __call__(
        self,
        logp_BTV: Tensor,
        logq_BTV: Tensor,
        temperature: Tensor | float = 1.0,
        context: LossContext | None = None,
    ) -> Tensor:
        """As `Divergence.__call__`, each term with its own factor."""
        terms = (self._scaled(term) for term in self.terms.values())
        return self._sum(term(logp_BTV, logq_BTV, temperature, context) for term in terms)

    def _scaled(self, term: Divergence) -> Divergence:
        if self.scale == "none":
            return term
        term = copy.copy(term)
        term.scale = self.scale
        return term

    def _sum(self, values: Iterable[Tensor]) -> Tensor:
        weighted = [weight * value for weight, value in zip(self.weights.values(), values, strict=True) if weight]
        return torch.stack(weighted).sum(0)


def _share(name: str, value: float) -> float:
    """A mixture weight, refused outside the open interval from 0 to 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must be strictly between 0 and 1, got {value}: its limits are ForwardKL or ReverseKL")
    return value


def _above_zero(name: str, value: float, remedy: str) -> float:
    """An option, refused unless above 0 and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {value}: {remedy}")
    return value
