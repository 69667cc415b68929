"""Closed forms of speculative decoding: what a pair of laws, or of models, would accept and gain (floor 1).

Axes: N positions, V vocabulary, T temperatures; any leading axes where a shape is not named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tempspec.core.sampling import log_law
from tempspec.core.verification import precise

Value = TypeVar("Value", float, Tensor)

# Elements of the tempered laws alive at once: a few megabytes stay in a CPU's cache, a GPU wants large kernels.
_CPU_ELEMENTS = 1 << 21
_GPU_ELEMENTS = 1 << 27


# ---------------------------------------------------------------------------------------------------------------------
# Two laws
# ---------------------------------------------------------------------------------------------------------------------


def _probabilities(logp: Tensor) -> Tensor:
    """The law itself, float32 or better."""
    return precise(logp).exp()


def overlap(logp: Tensor, logq: Tensor) -> Tensor:
    """`sum min(p, q) = 1 - TV(p, q)`, `[...]` from log-laws `[..., V]`: what rejection sampling accepts.

    With its gradient. Leviathan et al. 2023 (arXiv 2211.17192), corollary 3.6.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]), torch.tensor([0.2, 0.4, 0.1, 0.3])
    >>> overlap(p.log(), q.log())
    tensor(0.6500)
    """
    return torch.minimum(precise(logp), precise(logq)).exp().sum(-1)


def agreement(logp: Tensor, logq: Tensor) -> Tensor:
    """`sum p q`, `[...]` from log-laws `[..., V]`: the probability that independent samples of p and q agree.

    >>> agreement(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())
    tensor(0.5000)
    """
    return (_probabilities(logp) * _probabilities(logq)).sum(-1)


def gumbel_agreement(logp: Tensor, logq: Tensor) -> Tensor:
    """The probability that samples of p and q under shared Gumbel noise agree, `[...]` from log-laws `[..., V]`.

    `sum_x 1 / sum_y max(p_y / p_x, q_y / q_x)` (Daliri et al. 2024, arXiv 2408.07978), at the cost of one sort: with
    tokens in ascending order of q/p, the inner maximum is p's up to x and q's after it.

    >>> p, q = torch.tensor([0.5, 0.25, 0.15, 0.1]), torch.tensor([0.2, 0.4, 0.1, 0.3])
    >>> gumbel_agreement(p.log(), q.log())
    tensor(0.6181)
    """
    p, q = _probabilities(logp), _probabilities(logq)
    order = torch.where(p > 0, q / torch.where(p > 0, p, 1.0), torch.inf).argsort(-1)
    p, q = p.gather(-1, order), q.gather(-1, order)
    behind = q.flip(-1).cumsum(-1).flip(-1) - q
    both = (p > 0) & (q > 0)
    terms = p.cumsum(-1) / torch.where(both, p, 1.0) + behind / torch.where(both, q, 1.0)
    return torch.where(both, 1.0 / torch.where(both, terms, 1.0), 0.0).sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Independent acceptance at one rate: Leviathan et al. 2023 (2211.17192), sections 3.1 to 3.3
# ---------------------------------------------------------------------------------------------------------------------


def expected_accepted(alpha: Value, drafted: int) -> Value:
    """`E[tau] = alpha (1 - alpha^K) / (1 - alpha)`: accepted tokens per round, the extra one excluded; K at alpha = 1.

    Args:
        alpha: the acceptance rate in [0, 1], a number or a tensor.
        drafted: K, the tokens drafted a round.

    >>> expected_accepted(0.5, 2), expected_accepted(1.0, 3)
    (0.75, 3.0)
    """
    total = alpha * 0.0
    for _ in range(drafted):
        total = alpha * (1.0 + total)
    return total


def expected_tokens(alpha: Value, drafted: int) -> Value:
    """Tokens per round, the extra one included: `(1 - alpha^(K+1)) / (1 - alpha)`.

    >>> expected_tokens(0.5, 2)
    1.75
    """
    return 1.0 + expected_accepted(alpha, drafted)


def expected_tokens_by_position(alpha_K: Sequence[float]) -> float:
    """Tokens per round, the extra one included, of tokens accepted at rates of their own: `1 + a1 + a1 a2 + ..`.

    Args:
        alpha_K: the acceptance rate of each drafted token, given that those before it were accepted.

    >>> expected_tokens_by_position([0.5, 0.5]), expected_tokens_by_position([])
    (1.75, 1.0)
    """
    total = 1.0
    for alpha in reversed(alpha_K):
        total = 1.0 + alpha * total
    return total


def speedup(alpha: Value, drafted: int, cost: float, verify_cost: float = 1.0) -> Value:
    """The gain over plain decoding: `expected_tokens / (c K + v)`.

    Args:
        alpha: the acceptance rate in [0, 1], a number or a tensor.
        drafted: K, the tokens drafted a round.
        cost: c, a draft step's time over a target step's.
        verify_cost: v, the time of verifying K + 1 positions over that of one target step.

    >>> speedup(0.5, 2, cost=0.25)
    1.1666666666666667
    """
    return expected_tokens(alpha, drafted) / (cost * drafted + verify_cost)


def memory_bound_speedup(block_efficiency: Value, drafted: float, parameter_ratio: float) -> Value:
    """MBSU: the speed-up if a step's time were its model's parameter count, `tau / (c K + 1)`.

    Args:
        block_efficiency: emitted tokens per target call, the extra one included.
        drafted: tokens drafted per target call.
        parameter_ratio: c, the draft's parameters over the target's.

    >>> memory_bound_speedup(3.0, 4, 0.125)
    2.0
    """
    return block_efficiency / (parameter_ratio * drafted + 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Two models, at many temperatures
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Truncation:
    """How laws are cut before they are sampled, as in `tempspec.core.sampling.truncate`; nothing is cut by default.

    Attributes:
        top_k: 0 keeps all.
        top_p: in (0, 1]; 1 keeps all.
        min_p: in [0, 1]; 0 keeps all.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def laws(self, logits_NV: Tensor, temperatures: Sequence[float]) -> Tensor:
        """The law that decoding samples from, of each position at each temperature, `[T, N, V]`; costs sorts.

        >>> Truncation(top_k=1).laws(torch.tensor([[0.0, 1.0]]), [1.0])
        tensor([[[0., 1.]]])
        """
        if self == WHOLE:
            return tempered(logits_NV, temperatures)

        device = logits_NV.device
        real = torch.promote_types(logits_NV.dtype, torch.float32)  # half precision has no 1.05, and no 257

        def of_each(value: float, off: float, dtype: torch.dtype) -> Tensor | None:
            return None if value == off else torch.full((len(temperatures),), value, dtype=dtype, device=device)

        return log_law(
            logits_NV.detach().expand(len(temperatures), -1, -1),
            torch.tensor(list(temperatures), dtype=real, device=device),
            top_k_B=of_each(self.top_k, 0, torch.int64),
            top_p_B=of_each(self.top_p, 1.0, real),
            min_p_B=of_each(self.min_p, 0.0, real),
            most_k=self.top_k,
        ).exp()


WHOLE = Truncation()
"""Laws that are not cut."""


def tempered(logits_NV: Tensor, temperatures: Sequence[float]) -> Tensor:
    """The law of each position at each temperature, `[T, N, V]`; one-hot at the argmax (lowest id) where T = 0.

    For evaluation: no gradient passes.

    >>> tempered(torch.tensor([[0.0, 1.0]]), [0.0, 1.0])
    tensor([[[0.0000, 1.0000]],
            [[0.2689, 0.7311]]])
    """
    logits_NV = logits_NV.detach() if logits_NV.dtype == torch.float64 else logits_NV.detach().float()
    law_TNV = logits_NV.new_empty(len(temperatures), *logits_NV.shape)
    for law_NV, temperature in zip(law_TNV, temperatures, strict=True):
        if temperature > 0:
            torch.softmax(logits_NV / temperature, -1, out=law_NV)
        else:
            law_NV.zero_().scatter_(-1, logits_NV.argmax(-1, keepdim=True), 1.0)
    return law_TNV


def positions_at_once(logits_NV: Tensor, laws: int) -> int:
    """How many positions to temper at once, at least 1.

    Args:
        logits_NV: of one of the models.
        laws: how many laws each position will have.

    >>> positions_at_once(torch.zeros(9, 32_768), 8)
    8
    """
    elements = _CPU_ELEMENTS if logits_NV.device.type == "cpu" else _GPU_ELEMENTS
    return max(1, elements // max(1, laws * logits_NV.shape[-1]))


def _over_pairs(
    logits_p_NV: Tensor,
    logits_q_NV: Tensor,
    target_temperatures: Sequence[float],
    draft_temperatures: Sequence[float],
    combine: Callable[[Tensor, Tensor], Tensor],
    laws: Callable[[Tensor, Sequence[float]], Tensor] = tempered,
) -> Tensor:
    """`combine(p_TNV, q_TNV) -> [N, Tt, Td]` over chunks of positions, on the ids that both models have."""
    common = min(logits_p_NV.shape[-1], logits_q_NV.shape[-1])
    rows = positions_at_once(logits_p_NV, len(target_temperatures) + len(draft_temperatures))
    parts = [
        combine(laws(p_NV, target_temperatures)[..., :common], laws(q_NV, draft_temperatures)[..., :common])
        for p_NV, q_NV in zip(logits_p_NV.split(rows), logits_q_NV.split(rows), strict=True)
    ]
    return torch.cat(parts)


def overlaps(p_TNV: Tensor, q_TNV: Tensor) -> Tensor:
    """`sum min(p, q)` of every pair, `[N, Tt, Td]`, through one buffer of the size of q.

    Args:
        p_TNV: the target's laws, at least one.
        q_TNV: the draft's, of the same positions and ids.

    >>> overlaps(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.25, 0.75]], [[1.0, 0.0]]]))
    tensor([[[0.7500, 0.5000]]])
    """
    least_TNV = torch.empty_like(q_TNV)
    return torch.stack([torch.minimum(p_NV, q_TNV, out=least_TNV).sum(-1).T for p_NV in p_TNV], 1)


def acceptance_grid(
    logits_p_NV: Tensor,
    logits_q_NV: Tensor,
    target_temperatures: Sequence[float],
    draft_temperatures: Sequence[float],
    truncation: Truncation = WHOLE,
) -> Tensor:
    """`sum min(p, q) = 1 - TV` at every pair of temperatures, `[N, Tt, Td]`: what rejection sampling accepts.

    One softmax per model and temperature; nothing larger than a chunk of positions' laws is held. Heads of different
    sizes (padding) meet on the ids that both have: the rest of either law overlaps with nothing.

    Args:
        logits_p_NV: the target's logits.
        logits_q_NV: the draft's logits, of the same positions; V may differ.
        target_temperatures: at least 0 each; 0 is the one-hot law of the argmax.
        draft_temperatures: likewise.
        truncation: how both laws are cut.

    >>> acceptance_grid(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), [0.0, 1.0], [0.0, 1.0])
    tensor([[[1.0000, 0.7311],
             [0.5000, 0.7689]]])
    """
    return _over_pairs(logits_p_NV, logits_q_NV, target_temperatures, draft_temperatures, overlaps, truncation.laws)


def agreement_grid(
    logits_p_NV: Tensor, logits_q_NV: Tensor, target_temperatures: Sequence[float], draft_temperatures: Sequence[float]
) -> Tensor:
    """`sum p q` at every pair of temperatures, `[N, Tt, Td]`: what sampled-match verification accepts.

    Arguments as in `acceptance_grid`.

    >>> agreement_grid(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), [0.0, 1.0], [1.0])
    tensor([[[0.7311],
             [0.5000]]])
    """

    def products(p_TNV: Tensor, q_TNV: Tensor) -> Tensor:
        return torch.einsum("tnv,snv->nts", p_TNV, q_TNV)

    return _over_pairs(logits_p_NV, logits_q_NV, target_temperatures, draft_temperatures, products)


def argmax_acceptance(logits_p_NV: Tensor, logits_q_NV: Tensor, target_temperatures: Sequence[float]) -> Tensor:
    """`p_T(argmax z_q)`, `[N, Tt]`: what a draft that takes its argmax gets accepted, at each target temperature.

    Args:
        logits_p_NV: the target's logits.
        logits_q_NV: the draft's logits, of the same positions; V may differ (an id that p lacks is never accepted).
        target_temperatures: at least 0 each.

    >>> argmax_acceptance(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), [0.0, 1.0])
    tensor([[1.0000, 0.7311]])
    """
    return acceptance_grid(logits_p_NV, logits_q_NV, target_temperatures, [0.0]).squeeze(-1)


def entropy(logits_NV: Tensor, temperatures: Sequence[float]) -> Tensor:
    """The entropy of the law in nats at each temperature, `[N, T]`.

    >>> entropy(torch.tensor([[0.0, 0.0]]), [0.0, 1.0])
    tensor([[0.0000, 0.6931]])
    """
    rows = positions_at_once(logits_NV, len(temperatures))
    return torch.cat([torch.special.entr(tempered(z_NV, temperatures)).sum(-1).T for z_NV in logits_NV.split(rows)])
