"""Laws that lossy verification emits instead of the target's (floor 1).

With a substitute pi for the target's law p, rejection sampling emits exactly pi and accepts `1 - TV(pi, q)`: what such
a rule gains and what it costs, `TV(pi, p)` and `KL(pi || p)`, are both known without a sample.

Axes: V vocabulary; any leading axes.
"""

import math

import torch
from torch import Tensor

from tempspec.core.verification import precise

_BISECTIONS = 48
_NO_CLIP = 1e30


def distance(logpi: Tensor, logp: Tensor) -> tuple[Tensor, Tensor]:
    """`TV(pi, p)` and `KL(pi || p)` in nats, `[...]` each; the second is infinite where pi leaves p's support.

    >>> pi, p = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    >>> distance(pi.log(), p.log())
    (tensor(0.2500), tensor(0.1308))
    """
    logpi, logp = precise(logpi), precise(logp)
    pi = logpi.exp()
    ratio = torch.where(pi > 0, logpi - logp, 0.0)
    return (pi - logp.exp()).abs().sum(-1) / 2, torch.where(pi > 0, pi * ratio, 0.0).sum(-1)


def lenient(logp: Tensor, logq: Tensor, lenience: float) -> Tensor:
    """What accepting with `min(1, p / (l q))` and drawing from `(p - l q)+` otherwise emits, log-space `[..., V]`.

    `min(q, p / l)` and what is left in the shape of `(p - l q)+`; at most p / l everywhere.

    >>> lenient(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log(), 0.5).exp()
    tensor([0.9000, 0.1000])
    """
    p, q = precise(logp).exp(), precise(logq).exp()
    accepted = torch.minimum(q, p / lenience)
    left = (p - lenience * q).clamp(min=0.0)
    rest = 1.0 - accepted.sum(-1, keepdim=True)
    total = left.sum(-1, keepdim=True)
    return (accepted + rest.clamp(min=0.0) * left / torch.where(total > 0, total, 1.0)).log()


def mixture(logp: Tensor, logq: Tensor, weight: float) -> Tensor:
    """`w p + (1 - w) q` in log-space, `[..., V]`.

    >>> mixture(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log(), 0.75).exp()
    tensor([0.7500, 0.2500])
    """
    if weight in (0.0, 1.0):
        return precise(logp) if weight == 1.0 else precise(logq)
    return torch.logaddexp(precise(logp) + math.log(weight), precise(logq) + math.log1p(-weight))


def budgeted(logp: Tensor, logq: Tensor, budget: float) -> Tensor:
    """The law pi nearest to q in total variation with `KL(pi || p) <= D`, log-space `[..., V]`.

    `pi = clip(q, b p, a p)` with `b <= 1 <= a` and sum 1 (the conditions of Karush, Kuhn and Tucker). One number fixes
    both ends, the mass m that clipping moves at either; KL falls as m grows, so m is bisected.

    Args:
        logp: the target's log-law.
        logq: the draft's.
        budget: D in nats, at least 0.

    >>> p, q = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    >>> pi = budgeted(p, q, 0.05)
    >>> pi.exp(), distance(pi, p)[1]
    (tensor([0.3749, 0.3000, 0.3251]), tensor(0.0500))
    """
    p, q = precise(logp).double().exp(), precise(logq).double().exp()
    ratio = torch.where(p > 0, q / torch.where(p > 0, p, 1.0), torch.where(q > 0, torch.inf, torch.ones_like(q)))
    ratio, order = ratio.sort(-1)
    p_up, q_up = p.gather(-1, order), q.gather(-1, order)
    p_down, q_down = p_up.flip(-1), q_up.flip(-1)
    gained = _moved(ratio, p_up, q_up, sign=1.0)
    lost = _moved(ratio.flip(-1), p_down, q_down, sign=-1.0)

    def clipped(mass: Tensor) -> Tensor:
        low = _end(mass, gained, p_up, q_up, sign=1.0).clamp(max=1.0)
        high = _end(mass, lost, p_down, q_down, sign=-1.0).clamp(min=1.0)
        return torch.minimum(torch.maximum(q, low * p), high * p)

    least = torch.where(p > 0, 0.0, q).sum(-1, keepdim=True)
    most = torch.maximum((p - q).clamp(min=0.0).sum(-1, keepdim=True), least)
    for _ in range(_BISECTIONS):
        middle = (least + most) / 2
        fits = distance(clipped(middle).log(), p.log())[1][..., None] <= budget
        least, most = torch.where(fits, least, middle), torch.where(fits, middle, most)
    return clipped(most).log().log_softmax(-1).to(precise(logp).dtype)


def _moved(ratio: Tensor, p: Tensor, q: Tensor, *, sign: float) -> Tensor:
    """The mass that moves when q / p is clipped at each ratio; tokens run from the end that is clipped."""
    before_p, before_q = p.cumsum(-1) - p, q.cumsum(-1) - q
    finite = ratio.isfinite()
    moved = sign * (torch.where(finite, ratio, 0.0) * before_p - before_q)
    # Tokens that p lacks are last of those raised, which none is, and first of those lowered, all of their q.
    lacking = torch.full_like(q, torch.inf) if sign > 0 else before_q
    return torch.where(finite, moved, lacking).clamp(min=0.0).cummax(-1).values


def _end(mass: Tensor, moved: Tensor, p: Tensor, q: Tensor, *, sign: float) -> Tensor:
    """The ratio to clip at so that `mass [..., 1]` moves: linear between neighbouring tokens."""
    index = (torch.searchsorted(moved, mass, right=True) - 1).clamp(min=0)
    total_p, total_q = p.cumsum(-1).gather(-1, index), q.cumsum(-1).gather(-1, index)
    # Where only tokens that p lacks move, no ratio is clipped.
    return torch.where(total_p > 0, (total_q + sign * mass) / torch.where(total_p > 0, total_p, 1.0), _NO_CLIP)


def cascaded(logp: Tensor, logq: Tensor, tradeoff: float) -> Tensor:
    """The draft's law where the target is not worth asking, the target's elsewhere: log-space `[..., V]`.

    The target is asked where `max q < max p - tradeoff TV(p, q)` (Narasimhan et al. 2024, 2405.19261, the rule OPT).

    >>> p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.6, 0.4])
    >>> cascaded(p.log(), q.log(), 0.5).exp(), cascaded(p.log(), q.log(), 2.0).exp()
    (tensor([0.9000, 0.1000]), tensor([0.6000, 0.4000]))
    """
    logp, logq = precise(logp), precise(logq)
    apart = (logp.exp() - logq.exp()).abs().sum(-1) / 2
    defer = logq.amax(-1).exp() < logp.amax(-1).exp() - tradeoff * apart
    return torch.where(defer[..., None], logp, logq)
