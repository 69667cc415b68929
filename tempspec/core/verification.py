"""The decisions of single-path verification, without their randomness (floor 1).

A verifier turns these into decisions and one draw; see `tempspec.plugins.verifiers`. p is the target's law, q the
draft's, both as sampled (after temperature and truncation). Position i of a row holds the law of drafted token i given
the earlier ones; only the first `length_B` of K drafted tokens are real, and the rest never decides anything.

Laws may be bf16 or fp16: they are computed with in float32. Zeros of p and q (-inf) are legal everywhere and never
give NaN, one-hot laws (T = 0) included.

Axes: B batch, K drafted, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tempspec.core import hosts

# A drafted token has q > 0, so this bound on log(p / q) binds only after a row's length, where it keeps sums finite.
_MAX_LOG_RATIO = 1e4

_STRIP = 1 << 17
"""Numbers of a law that a CPU works on at once: what one operation writes is in its cache for the next."""


def precise(law: Tensor) -> Tensor:
    """The law in float32 or better; no copy if it is already."""
    return law if law.dtype == torch.float64 else law.float()


def probabilities(law: Tensor) -> Tensor:
    """The probabilities of a log-law, any shape `[..., V]`, in float32 or better: `exp`, by way of the softmax.

    A law's softmax is its exponential, and takes half the time on a CPU. Rows that are no laws give NaN.

    >>> probabilities(torch.tensor([0.25, 0.75]).log())
    tensor([0.2500, 0.7500])
    """
    return torch.softmax(precise(law), -1)


def of_token(law_BKV: Tensor, token_BK: Tensor) -> Tensor:
    """The entry of each law at its drafted token, `[B, K]`; a law after the last token (the bonus) is not read."""
    return law_BKV[:, : token_BK.shape[1]].gather(-1, token_BK[..., None]).squeeze(-1)


def at_position(law_BKV: Tensor, position_R: Tensor, row_R: Tensor | None = None) -> Tensor:
    """One law each of some rows, `[R, V]`: the one at `position_R` of row `row_R`; None means one of every row."""
    rows, positions = law_BKV.shape[:2]
    row_R = torch.arange(rows, device=law_BKV.device) if row_R is None else row_R
    return law_BKV.flatten(0, 1).index_select(0, torch.add(position_R, row_R, alpha=positions))


def real(token_BK: Tensor, length_B: Tensor) -> Tensor:
    """Which drafted tokens are real, bool `[B, K]`."""
    return torch.arange(token_BK.shape[1], device=token_BK.device) < length_B[:, None]


def rows_of(wanted_B: Tensor) -> Tensor:
    """The rows to work on, int64 `[R]`: on a CPU those that are wanted, and no other costs time.

    Elsewhere all rows: to ask which are wanted would make the host wait for the device.
    """
    if hosts.reads_free(wanted_B):
        return wanted_B.nonzero().squeeze(1)
    return torch.arange(len(wanted_B), device=wanted_B.device)


def _put(weight_BV: Tensor, row_R: Tensor, new_RV: Tensor, wanted_B: Tensor) -> Tensor:
    """The weights, with new ones in the wanted rows; `row_R` is `rows_of(wanted_B)`."""
    if len(row_R) == len(weight_BV):
        return torch.where(wanted_B[:, None], new_RV.to(weight_BV.dtype), weight_BV)
    weight_BV[row_R] = new_RV.to(weight_BV.dtype)
    return weight_BV


# ---------------------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------------------


def first_rejection(accept_BK: Tensor, length_B: Tensor) -> Tensor:
    """How many drafted tokens are accepted before the first that is not, int64 `[B]` in 0..length.

    >>> first_rejection(torch.tensor([[True, False, True], [True, True, True]]), torch.tensor([3, 2]))
    tensor([1, 2])
    """
    return (accept_BK & real(accept_BK, length_B)).long().cumprod(-1).sum(-1)


def last_success(accept_BK: Tensor, length_B: Tensor) -> Tensor:
    """The largest i in 1..length whose decision was to accept, 0 if none was, int64 `[B]`.

    >>> last_success(torch.tensor([[True, False, True], [True, False, True]]), torch.tensor([3, 2]))
    tensor([3, 1])
    """
    success_BK = (accept_BK & real(accept_BK, length_B)).long()
    return success_BK.flip(-1).cummax(-1).values.sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# The ratio test
# ---------------------------------------------------------------------------------------------------------------------


def log_ratio(logp_BK: Tensor, logq_BK: Tensor) -> Tensor:
    """`log(p / q)` of drafted tokens, float64; -inf wherever p is 0, never NaN nor +inf.

    Args:
        logp_BK: the target's log-probability of each drafted token, any shape.
        logq_BK: the draft's, same shape.
    """
    logp_BK, logq_BK = logp_BK.double(), logq_BK.double()
    impossible_BK = logp_BK == -torch.inf
    difference_BK = logp_BK.masked_fill(impossible_BK, 0.0) - logq_BK
    return difference_BK.clamp(max=_MAX_LOG_RATIO).masked_fill(impossible_BK, -torch.inf)


def acceptance_probability(logp_BK: Tensor, logq_BK: Tensor) -> Tensor:
    """`min(1, p / q)` of drafted tokens, float64, any shape. Leviathan et al. 2023 (2211.17192), algorithm 1.

    >>> acceptance_probability(torch.tensor([0.25, 0.5]).log(), torch.tensor([0.5, 0.25]).log())
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    return log_ratio(logp_BK, logq_BK).clamp(max=0.0).exp()


def residual(logp_BV: Tensor, logq_BV: Tensor, survival_B: Tensor | None = None) -> Tensor:
    """`(s p - q)+`, unnormalised, `[B, V]`; p itself where that is zero everywhere (p = q, or by rounding).

    Args:
        logp_BV: the target's log-law at the position after the accepted tokens.
        logq_BV: the draft's log-law there.
        survival_B: the factor s on p in (0, 1] (block verification's P); None means 1.

    >>> p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    >>> residual(p.log(), q.log())
    tensor([[0.2500, 0.0000, 0.0000]])
    >>> residual(p.log(), p.log())
    tensor([[0.5000, 0.2500, 0.2500]])
    """
    return _excess(probabilities(logp_BV), probabilities(logq_BV), survival_B)


def _excess(p_BV: Tensor, q_BV: Tensor, survival_B: Tensor | None) -> Tensor:
    """`(s p - q)+`, or p where that is zero everywhere."""
    scaled_BV = p_BV if survival_B is None else survival_B[:, None].to(p_BV.dtype) * p_BV
    excess_BV = (scaled_BV - q_BV).clamp_(min=0.0)
    nothing_B = excess_BV.amax(-1) == 0
    return excess_BV.addcmul_(p_BV.to(excess_BV.dtype), nothing_B[:, None].to(excess_BV.dtype))


def next_weight(
    logp_BKV: Tensor, logq_BKV: Tensor, accepted_B: Tensor, length_B: Tensor, survival_B: Tensor | None = None
) -> Tensor:
    """The unnormalised law of the token after the accepted ones, `[B, V]`: the residual, or p if all were accepted.

    One law of the target per row is exponentiated, and one of the draft where a token was rejected, whatever K.

    Args:
        logp_BKV: the target's log-laws, `[B, K+1, V]`.
        logq_BKV: the draft's log-laws, `[B, K, V]`, K may be 0.
        accepted_B: how many drafted tokens are accepted.
        length_B: how many were drafted.
        survival_B: see `residual`.
    """
    weight_BV = probabilities(at_position(logp_BKV, accepted_B))
    if logq_BKV.shape[1] == 0:
        return weight_BV
    rejected_B = accepted_B < length_B
    row_R = rows_of(rejected_B)
    place_R = accepted_B[row_R].clamp(max=logq_BKV.shape[1] - 1)
    q_RV = probabilities(at_position(logq_BKV, place_R, row_R))
    survival_R = None if survival_B is None else survival_B[row_R]
    excess_RV = _excess(weight_BV.index_select(0, row_R), q_RV, survival_R)
    return _put(weight_BV, row_R, excess_RV, rejected_B)


# ---------------------------------------------------------------------------------------------------------------------
# Block verification: Sun et al. 2024 (2403.10444)
# ---------------------------------------------------------------------------------------------------------------------


def block_survival(logratio_BK: Tensor) -> Tensor:
    """`P_0..P_K`, float64 `[B, K+1]`: `P_0 = 1`, `P_i = min(1, P_{i-1} r_i)`.

    P_i is the probability that at least i tokens are accepted, given the first i of them: `E[tau] = sum E_q[P_i]`.

    Args:
        logratio_BK: `log r_i = log(p_i(x_i) / q_i(x_i))`.

    >>> block_survival(torch.tensor([[0.5, 4.0, 0.25]]).log())
    tensor([[1.0000, 0.5000, 1.0000, 0.2500]], dtype=torch.float64)
    """
    sum_BK = torch.nn.functional.pad(logratio_BK.double(), (1, 0)).cumsum(-1)
    return (sum_BK - sum_BK.cummax(-1).values).exp()


def block_accepted(
    logp_BKV: Tensor, logq_BKV: Tensor, survival_BK: Tensor, length_B: Tensor, toss: Callable[[Tensor], Tensor]
) -> Tensor:
    """How many drafted tokens are accepted, int64 `[B]`: the largest i whose decision is to accept, 0 if none is.

    Coin i succeeds with `h_i = m_i / (m_i + 1 - P_i)`, `m_i = sum_y (P_i p(y | x_<=i) - q(y | x_<=i))+`, 0/0 counting
    as 1, and at the row's last real token with `P`. As `h <= P`, all are tossed with P first; the laws of a position
    are looked at only where that settles nothing, from the last token back.

    Args:
        logp_BKV: the target's log-laws, `[B, K+1, V]`.
        logq_BKV: the draft's log-laws, `[B, K, V]`, K may be 0.
        survival_BK: `block_survival`, `[B, K+1]`.
        length_B: how many were drafted.
        toss: `probability_BK -> success_BK`, the same decisions at every call: see `tempspec.interfaces.Noise.coins`.
    """
    chance_BK = survival_BK[:, 1:].clone()
    passed_BK = toss(chance_BK) & real(chance_BK, length_B)
    number_K = torch.arange(1, chance_BK.shape[1] + 1, device=chance_BK.device)
    sure_BK = passed_BK & ((chance_BK == 1.0) | (number_K == length_B[:, None]))
    accepted_B = last_success(sure_BK, length_B)
    for position in range(chance_BK.shape[1] - 1, 0, -1):
        open_B = passed_BK[:, position - 1] & (accepted_B < position)
        row_R = rows_of(open_B)
        survival_R = chance_BK[row_R, position - 1]
        at_R = torch.full_like(row_R, position)
        p_RV, q_RV = (probabilities(at_position(law_BKV, at_R, row_R)) for law_BKV in (logp_BKV, logq_BKV))
        mass_R = p_RV.mul_(survival_R[:, None].to(p_RV.dtype)).sub_(q_RV).clamp_(min=0.0).sum(-1).double()
        chance_R = mass_R / (mass_R + 1.0 - survival_R)
        chance_BK[row_R, position - 1] = torch.where(open_B[row_R], chance_R, survival_R)
        success_B = toss(chance_BK)[:, position - 1] & open_B
        accepted_B = torch.where(success_B, position, accepted_B)
    return accepted_B


# ---------------------------------------------------------------------------------------------------------------------
# Typical acceptance: Cai et al. 2024 (2401.10774), section 3.3.1
# ---------------------------------------------------------------------------------------------------------------------


def typical_log_threshold(logp: Tensor, p: Tensor, epsilon: float, delta: float) -> Tensor:
    """`log min(epsilon, delta exp(-H(p)))`, `[...]`: a token is typical when its log-probability exceeds it.

    The higher the target's entropy H (nats), the less likely a token need be.

    Args:
        logp: the target's log-laws, `[..., V]`, in float32 or better.
        p: their `probabilities`.
        epsilon: the cap.
        delta: the entropy's factor.

    >>> p = torch.tensor([[0.5, 0.5]])
    >>> typical_log_threshold(p.log(), p, epsilon=1.0, delta=0.5).exp()
    tensor([0.2500])
    """
    entropy = -(p * logp).nansum(-1)  # 0 log 0 is NaN, and counts as 0
    return (delta * torch.exp(-entropy)).clamp(max=epsilon).log()


def typical_outcome(
    logp_BKV: Tensor, token_BK: Tensor, length_B: Tensor, epsilon: float, delta: float
) -> tuple[Tensor, Tensor]:
    """How many tokens are typical before the first that is not, int64 `[B]` in 0..length, and p after them, `[B, V]`.

    No law after a row's failure is looked at.

    >>> logp = torch.tensor([[[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]]]).log()
    >>> typical_outcome(logp, torch.tensor([[0, 1]]), torch.tensor([2]), epsilon=0.5, delta=1.0)
    (tensor([1]), tensor([[0.7500, 0.2500]]))
    """
    logp_RV = logp_BKV[:, 0]
    weight_BV = p_RV = probabilities(logp_RV)
    accepted_B, row_R = torch.zeros_like(length_B), torch.arange(len(length_B), device=length_B.device)
    standing_B = torch.ones_like(length_B, dtype=torch.bool)
    for position, token_B in enumerate(token_BK.unbind(1)):
        logp_R = precise(logp_RV.gather(1, token_B[row_R, None]).squeeze(1))
        typical_R = logp_R > typical_log_threshold(precise(logp_RV), p_RV, epsilon, delta)
        standing_B = torch.zeros_like(standing_B).index_copy(0, row_R, typical_R) & standing_B & (length_B > position)
        accepted_B = accepted_B + standing_B
        row_R = rows_of(standing_B)
        logp_RV = at_position(logp_BKV, torch.full_like(row_R, position + 1), row_R)
        p_RV = probabilities(logp_RV)
        weight_BV = _put(weight_BV, row_R, p_RV, standing_B)
    return accepted_B, weight_BV


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator`, 0 where the denominator is 0."""
    fine = denominator > 0
    return torch.where(fine, numerator / torch.where(fine, denominator, 1.0), 0.0)


def strips(rows: int, law: Tensor, each: int = 1) -> list[slice]:
    """Rows of laws like `law [..., V]` in strips that fit a CPU's cache; all rows in one on other devices.

    Args:
        rows: how many.
        law: any of them.
        each: how many laws belong to a row.

    >>> strips(3, torch.zeros(100_000))
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    >>> strips(3, torch.zeros(1_000))
    [slice(0, 131, None)]
    """
    step = max(1, _STRIP // (each * law.shape[-1])) if law.device.type == "cpu" else max(1, rows)
    return [slice(first, first + step) for first in range(0, rows, step)]
