"""Distances between the target's law p and the draft's law q, per position (floor 1).

Every function takes log-laws `[..., V]` and returns nats `[...]`, in float32 or better whatever came in. Laws may hold
zeros (-inf). Values are exact there, +inf included, and NaN stays NaN. Gradients are finite always, also where a value
is not: a token that the draft forbids gets none, since no finite step brings it back; one that only the target forbids
gets a bounded push out of the draft.

Axes: V vocabulary; any leading ones.
"""

import functools

import torch
from torch import Tensor

__all__ = [
    "acceptance",
    "entropy",
    "forward_kl",
    "jensen_shannon",
    "lk_hybrid",
    "negative_log_acceptance",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
]

# The log-ratio that stands for an infinite one in gradients: -log of float32's smallest normal number.
_LARGEST_LOG_RATIO = 87.33655


def forward_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p | q) = sum p log(p / q): the draft must cover the target. Kullback and Leibler 1951.

    +inf where q forbids what p allows; such entries add nothing to q's gradient.

    >>> p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    >>> forward_kl(p.log(), q.log())
    tensor(0.6931)
    >>> forward_kl(q.log(), p.log())
    tensor(inf)
    """
    logp, logq = _wide(logp, logq)
    log_ratio = logp - logq
    impossible = torch.isposinf(log_ratio)
    finite = _expectation(logp.exp(), log_ratio.masked_fill(impossible, _LARGEST_LOG_RATIO))
    # Added rather than filled in, so that the rest of the position keeps its gradient.
    return finite + torch.zeros_like(finite).masked_fill_(impossible.any(-1), torch.inf)


def reverse_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(q | p) = sum q log(q / p): the draft must stay where the target is.

    +inf where p forbids what q allows; the gradient pushes q's mass away from there.

    >>> p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    >>> reverse_kl(p.log(), q.log())
    tensor(0.6931)
    """
    return forward_kl(logq, logp)


def jensen_shannon(logp: Tensor, logq: Tensor, *, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon: beta KL(p | m) + (1 - beta) KL(q | m), with m = beta p + (1 - beta) q.

    Bounded by the entropy of (beta, 1 - beta), symmetric at beta = 1/2. Agarwal et al. 2024 (GKD, arXiv 2306.13649).

    Args:
        logp: the target's log-law.
        logq: the draft's log-law.
        beta: the target's share of the mixture, between 0 and 1.

    >>> p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> jensen_shannon(p.log(), q.log())  # log 2
    tensor(0.6931)
    """
    logp, logq = _wide(logp, logq)
    p, q = logp.exp(), logq.exp()
    logm = _log(torch.lerp(q, p, beta))
    return beta * _expectation(p, logp - logm) + (1 - beta) * _expectation(q, logq - logm)


def skew_kl(logp: Tensor, logq: Tensor, *, alpha: float = 0.1) -> Tensor:
    """KL(p | alpha p + (1 - alpha) q), at most -log alpha. Ko et al. 2024 (DistiLLM, arXiv 2402.03898), eq. 5.

    Args:
        logp: the target's log-law.
        logq: the draft's log-law.
        alpha: the target's share of the mixture, between 0 and 1.

    >>> p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> skew_kl(p.log(), q.log(), alpha=0.5)  # log 2
    tensor(0.6931)
    """
    logp, logq = _wide(logp, logq)
    p = logp.exp()
    return _expectation(p, logp - _log(torch.lerp(logq.exp(), p, alpha)))


def skew_reverse_kl(logp: Tensor, logq: Tensor, *, alpha: float = 0.1) -> Tensor:
    """KL(q | (1 - alpha) p + alpha q), at most -log alpha. Ko et al. 2024 (DistiLLM, arXiv 2402.03898).

    Args:
        logp: the target's log-law.
        logq: the draft's log-law.
        alpha: the draft's share of the mixture, between 0 and 1.

    >>> p, q = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])
    >>> skew_reverse_kl(p.log(), q.log(), alpha=0.5)  # (log 2 + log 2/3) / 2
    tensor(0.1438)
    """
    return skew_kl(logq, logp, alpha=alpha)


def total_variation(logp: Tensor, logq: Tensor) -> Tensor:
    """1/2 sum |p - q| = 1 - acceptance, in [0, 1]. Leviathan et al. 2023 (arXiv 2211.17192), theorem 3.5.

    Its gradient shrinks as 1/V for a draft that knows nothing: start from a trained one.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    >>> total_variation(p.log(), q.log())
    tensor(0.2500)
    """
    logp, logq = _wide(logp, logq)
    return 0.5 * (logp.exp() - logq.exp()).abs().sum(-1)


def acceptance(logp: Tensor, logq: Tensor) -> Tensor:
    """The overlap sum min(p, q): the chance that rejection sampling keeps a token drawn from q, in [0, 1].

    Leviathan et al. 2023 (arXiv 2211.17192), corollary 3.6.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    >>> acceptance(p.log(), q.log())
    tensor(0.7500)
    """
    return torch.minimum(*_wide(logp, logq)).exp().sum(-1)


def negative_log_acceptance(logp: Tensor, logq: Tensor) -> Tensor:
    """-log sum min(p, q); its gradient is total variation's over the acceptance.

    Samarin et al. 2026 (LK losses, arXiv 2602.23881). Summed in log-space: laws that hardly overlap keep an exact value
    and a gradient of full size, far below the smallest float32 probability. Only disjoint supports (zeros as -inf) give
    +inf, with gradient 0: there no finite change of the draft's other logits makes p and q overlap.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    >>> negative_log_acceptance(p.log(), q.log())  # -log 0.75
    tensor(0.2877)
    >>> negative_log_acceptance(torch.tensor([0.0, -300.0]), torch.tensor([-200.0, 0.0]))
    tensor(200.)
    """
    log_overlap = torch.minimum(*_wide(logp, logq))
    disjoint = log_overlap.detach().amax(-1) == -torch.inf
    # logsumexp has no gradient where all entries are -inf.
    return -log_overlap.masked_fill(disjoint[..., None], 0.0).logsumexp(-1).masked_fill(disjoint, -torch.inf)


def lk_hybrid(logp: Tensor, logq: Tensor, *, eta: float = 3.0, temperature: Tensor | float = 1.0) -> Tensor:
    """A mixture, lam KL(p | q) + (1 - lam) TV(p, q), with lam = exp(-eta acceptance) at each position, held constant.

    KL's gradient leads where the draft is poor, total variation's where it is good. Samarin et al. 2026 (LK losses,
    arXiv 2602.23881).

    Args:
        logp: the target's log-law.
        logq: the draft's log-law.
        eta: how fast the weight moves from KL to total variation, at least 0 (0 is KL alone).
        temperature: multiplies each term by the power of T that keeps its gradient's scale: T^2 for KL, T for total
            variation. A number, or a tensor that broadcasts to `[...]`.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    >>> lk_hybrid(p.log(), q.log(), eta=3.0)  # 0.1054 * 0.1438 + 0.8946 * 0.25
    tensor(0.2388)
    """
    distance = total_variation(logp, logq)
    weight = torch.exp(-eta * (1 - distance.detach()))
    return weight * temperature**2 * forward_kl(logp, logq) + (1 - weight) * temperature * distance


def entropy(logp: Tensor) -> Tensor:
    """-sum p log p, in nats. Shannon 1948.

    >>> entropy(torch.tensor([0.5, 0.5, 0.0]).log())
    tensor(0.6931)
    """
    (logp,) = _wide(logp)
    return -_expectation(logp.exp(), logp)


def _wide(*laws: Tensor) -> tuple[Tensor, ...]:
    """The laws in their common type, float32 at least."""
    dtype = functools.reduce(torch.promote_types, (law.dtype for law in laws), torch.float32)
    return tuple(law.to(dtype) for law in laws)


def _log(m: Tensor) -> Tensor:
    """The log of probabilities, finite in value and gradient where they underflow."""
    return (m + torch.finfo(m.dtype).tiny).log()


def _expectation(p: Tensor, value: Tensor) -> Tensor:
    """The sum of p value, with 0 times anything = 0, in value and gradient."""
    return (p * value.masked_fill(p == 0, 0.0)).sum(-1)
