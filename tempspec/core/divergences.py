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
    "adaptive_kl",
    "alpha_beta",
    "entropy",
    "forward_kl",
    "interpolated_kl",
    "jensen_shannon",
    "label_cross_entropy",
    "lk_hybrid",
    "logit_difference",
    "negative_log_acceptance",
    "normalised_total_variation",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "top_k_cross_entropy",
    "total_variation",
]

# The log-ratio that replaces an infinite one in gradients: -log of float32's smallest normal number.
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
    p, log_ratio = logp.exp(), logp - logq
    value = (p * log_ratio).sum(-1)
    if _known_finite(value):  # then no entry needs a guard, and half of the time is saved
        return value
    impossible = torch.isposinf(log_ratio)
    finite = _expectation(p, log_ratio.masked_fill(impossible, _LARGEST_LOG_RATIO))
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


def normalised_total_variation(logp: Tensor, logq: Tensor, *, floor: float = 1e-2) -> Tensor:
    """TVD++: total variation over the deviation of its reward, which is held constant.

    Total variation's gradient is the policy gradient of the reward 1{p > q} under q. Here the reward is normalised by
    its mean and standard deviation under q, position by position: the exact expectation makes the mean drop out, and
    the deviation, sqrt(m (1 - m)) with m = q(p > q), divides. After Goel et al. 2024 (TVD++, arXiv 2403.00858), whose
    reward it is; over which set they take mean and deviation was not checked against their text.

    Args:
        logp: the target's log-law.
        logq: the draft's log-law.
        floor: the smallest deviation, above 0; without it a reward that never varies divides by 0.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2])
    >>> normalised_total_variation(p.log(), q.log())  # 0.3 / sqrt(0.2 * 0.8)
    tensor(0.7500)
    """
    logp, logq = _wide(logp, logq)
    mean = (logq.detach().exp() * (logp > logq)).sum(-1).clamp(max=1)
    return total_variation(logp, logq) / (mean * (1 - mean)).sqrt().clamp(min=floor)


def alpha_beta(logp: Tensor, logq: Tensor, *, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    """-1/(ab) sum [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)]. Wang et al. 2025 (ABKD, arXiv 2505.04560).

    Forward KL is the limit a = 1, b -> 0; reverse KL a -> 0, b = 1. A large a looks at the target's peaks, a large b
    hardly moves what the draft is sure of.

    Args:
        logp: the target's log-law.
        logq: the draft's log-law.
        alpha: a, above 0.
        beta: b, above 0.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    >>> alpha_beta(p.log(), q.log(), alpha=1.0, beta=1.0)  # half the squared distance
    tensor(0.0625)
    """
    logp, logq = _wide(logp, logq)
    both = alpha + beta
    mixed = (alpha * logp + beta * logq).exp()
    own = (alpha * (both * logp).exp() + beta * (both * logq).exp()) / both
    return (own - mixed).sum(-1) / (alpha * beta)


def adaptive_kl(logp: Tensor, logq: Tensor, *, share: float = 0.5) -> Tensor:
    """Adaptive KL, h KL(p | q) + l KL(q | p): h and l are the shares of |p - q| on p's head and on its tail.

    Both are held constant. The head is the fewest most likely tokens that hold `share` of p's mass, and whatever ties
    with the last of them: forward KL learns heads first, reverse KL tails. Wu et al. 2024 (AKL, arXiv 2404.02657).

    Args:
        logp: the target's log-law.
        logq: the draft's log-law.
        share: the head's mass, between 0 and 1.

    >>> p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.4, 0.3, 0.3])
    >>> adaptive_kl(p.log(), q.log())  # half of each: the head, token 0, and the tail are both off by 0.2
    tensor(0.1504)
    """
    logp, logq = _wide(logp, logq)
    head = logp.detach() >= _last_of_head(logp.detach(), share)
    gap = (logp.detach().exp() - logq.detach().exp()).abs()
    total = gap.sum(-1)
    weight = (gap * head).sum(-1) / total.masked_fill(total == 0, 1.0)
    forward, reverse = forward_kl(logp, logq), reverse_kl(logp, logq)
    return weight * forward.masked_fill(weight == 0, 0.0) + (1 - weight) * reverse.masked_fill(weight == 1, 0.0)


def interpolated_kl(logp: Tensor, logq: Tensor, *, share: Tensor | float) -> Tensor:
    """KL(r | q) with r = softmax((1 - t) log q + t log p), held constant: a teacher on the way from draft to target.

    With equal temperatures r is the softmax of the interpolated logits. Where r has no mass at all, p takes its place.
    Shing et al. 2025 (TAID, arXiv 2501.16937).

    Args:
        logp: the target's log-law.
        logq: the draft's log-law.
        share: t, above 0 and at most 1 (forward KL).

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    >>> bool(interpolated_kl(p.log(), q.log(), share=1.0) == forward_kl(p.log(), q.log()))
    True
    >>> interpolated_kl(p.log(), q.log(), share=0.5)
    tensor(0.0330)
    """
    logp, logq = _wide(logp, logq)
    fixed_p, fixed_q = logp.detach(), logq.detach()
    # t = 1 must not multiply -inf by 0: what q forbids then stays possible.
    if isinstance(share, Tensor):  # a value of the device, for which no host waits
        way = torch.where(share < 1, share * fixed_p + (1 - share) * fixed_q, fixed_p)
    else:
        way = share * fixed_p + (1 - share) * fixed_q if share < 1 else fixed_p
    empty = (way.amax(-1) == -torch.inf)[..., None]
    return forward_kl(torch.where(empty, fixed_p, way).log_softmax(-1), logq)


def top_k_cross_entropy(logp: Tensor, logq: Tensor, *, k: int = 10) -> Tensor:
    """-sum p log q over the target's k most likely tokens. Zhang et al. 2025 (HASS, arXiv 2408.15766), eq. 2.

    Not 0 at p = q. +inf where q forbids one of them; such entries add nothing to q's gradient. Ties with the k-th
    count as well.

    Args:
        logp: the target's log-law.
        logq: the draft's log-law.
        k: how many tokens, at least 1.

    >>> p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.5, 0.25])
    >>> top_k_cross_entropy(p.log(), q.log(), k=1)  # 0.5 log 4
    tensor(0.6931)
    """
    logp, logq = _wide(logp, logq)
    floor = logp.topk(min(k, logp.shape[-1]), -1).values[..., -1:]
    # Not a product with the mask: NaN must stay NaN.
    return _cross_entropy(logp.exp().masked_fill(logp < floor, 0.0), logq)


def label_cross_entropy(logq: Tensor, label: Tensor) -> Tensor:
    """-log q(label): supervised training, and sequence-level distillation on the target's own text.

    +inf where q forbids the label, with gradient 0; 0 where q has no such id, which no draft can learn. Kim and Rush
    2016 (arXiv 1606.07947).

    Args:
        logq: the draft's log-law.
        label: the token of the text, int64 `[...]`.

    >>> label_cross_entropy(torch.tensor([[0.25, 0.75]] * 2).log(), torch.tensor([0, 2]))
    tensor([1.3863, 0.0000])
    """
    (logq,) = _wide(logq)
    known = label < logq.shape[-1]
    own = logq.gather(-1, label.clamp(max=logq.shape[-1] - 1)[..., None]).squeeze(-1)
    impossible = own == -torch.inf
    value = -own.masked_fill(impossible, 0.0) + torch.zeros_like(own).masked_fill_(impossible, torch.inf)
    return torch.where(known, value, 0.0)


def logit_difference(logp: Tensor, logq: Tensor) -> Tensor:
    """The variance under p of d = log q - log p, which is 1/2 sum p_i p_j (d_i - d_j)^2.

    Matches differences of logits, so that a shift of all logits does not matter; its T^2 factor frees it of the
    temperature but for the weights. +inf where q forbids what p allows; the rest of the position keeps its gradient.
    After Kim et al. 2025 (concrete score distillation, arXiv 2509.25837), who match the differences of all pairs of
    tokens under weights of one's choice: p_i p_j here, which covers the target's modes. Constant factors may differ.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    >>> logit_difference(p.log(), q.log())  # (log 3 / 2)^2
    tensor(0.3017)
    """
    logp, logq = _wide(logp, logq)
    p, gap = logp.exp(), logq - logp
    impossible = torch.isneginf(gap)
    kept = p.masked_fill(impossible, 0.0)
    kept = kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    gap = gap.masked_fill((kept == 0), 0.0)
    centred = gap - (kept * gap).sum(-1, keepdim=True)
    value = (kept * centred.square()).sum(-1)
    return value + torch.zeros_like(value).masked_fill_(impossible.any(-1), torch.inf)


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


def _known_finite(value: Tensor) -> bool:
    """Whether all values are finite: asked on a CPU alone, as a host would wait for a GPU's answer."""
    return value.is_cpu and not torch.compiler.is_compiling() and bool(value.isfinite().all())


def _log(m: Tensor) -> Tensor:
    """The log of probabilities, finite in value and gradient where they underflow."""
    return (m + torch.finfo(m.dtype).tiny).log()


def _expectation(p: Tensor, value: Tensor) -> Tensor:
    """The sum of p value, with 0 times anything = 0, in value and gradient."""
    return (p * value.masked_fill(p == 0, 0.0)).sum(-1)


def _cross_entropy(weight: Tensor, logq: Tensor) -> Tensor:
    """-sum weight log q; +inf where a weight above 0 meets a zero of q, which then adds nothing to the gradient."""
    impossible = (weight > 0) & (logq == -torch.inf)
    finite = -_expectation(weight.masked_fill(impossible, 0.0), logq)
    return finite + torch.zeros_like(finite).masked_fill_(impossible.any(-1), torch.inf)


def _last_of_head(logp: Tensor, share: float) -> Tensor:
    """The log-probability of the least likely token among the fewest that hold `share` of the mass, `[..., 1]`."""
    sorted_logp = logp.sort(-1, descending=True).values
    before = sorted_logp.exp().cumsum(-1) - sorted_logp.exp()
    last = (before < share).sum(-1, keepdim=True) - 1
    return sorted_logp.gather(-1, last.clamp(min=0))
