"""A teacher that is known at a few tokens of every position: what a cache of its logits keeps (floor 1).

Two ways to keep K tokens of V. `top_k` keeps the largest logits and, at several temperatures, the logsumexp of all
others: the laws that come back have one cell for that tail, by which no divergence of laws grows. `draw` keeps samples
of the law and the logsumexp of all logits: whatever is a mean under p of a function of q / p is then estimated without
bias (Anshumann et al. 2025, arXiv 2503.16870).

Axes: N positions, K kept tokens, V vocabulary, H temperatures, C cells of a law.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tempspec.errors import UserError

__all__ = ["SparseLogits", "draw", "top_k"]


@dataclass(frozen=True, slots=True)
class SparseLogits:
    """Some logits of a teacher.

    Attributes:
        token_NK: the kept tokens, int64.
        logit_NK: their logits.
        logsum_NH: logsumexp(z / T) at each temperature: over the tail of the kept tokens, or, of samples, over all.
        temperatures: H temperatures, increasing, above 0.
        drawn_at: the temperature that the tokens were sampled at; None for the largest logits.
    """

    token_NK: Tensor
    logit_NK: Tensor
    logsum_NH: Tensor
    temperatures: tuple[float, ...]
    drawn_at: float | None = None

    def part(self, tokens: slice) -> "SparseLogits":
        """The same for some of the positions."""
        return replace(
            self, token_NK=self.token_NK[tokens], logit_NK=self.logit_NK[tokens], logsum_NH=self.logsum_NH[tokens]
        )

    def laws(self, temperature_N: Tensor, logq_NV: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's law at a temperature and the draft's, on the same cells, as logarithms `[N, C]` each.

        Of the largest logits the last cell is the tail (none where K = V); between two of the temperatures its
        logsumexp is interpolated linearly in 1 / T, which is exact at them and errs upwards between (it is convex). Of
        samples both are weighted by 1 / K and the importance of the sample: not laws, but sums that estimate those of
        laws.

        Args:
            temperature_N: of the teacher.
            logq_NV: the draft's log-law, at its own temperature.

        Raises:
            UserError: see `check`.
        """
        self.check(temperature_N, logq_NV.shape[-1])
        return self.cells(temperature_N, logq_NV)

    def check(self, temperature_N: Tensor, vocabulary: int) -> None:
        """Refuse temperatures that nothing was kept for. The host waits for them.

        Args:
            temperature_N: of the teacher.
            vocabulary: V; where all of its tokens are kept any temperature will do.

        Raises:
            UserError: a temperature outside of those kept; of samples, another one than those.
        """
        kept_H = temperature_N.new_tensor(self.temperatures)
        if self.drawn_at is not None:
            far_NH = (temperature_N[:, None] - kept_H).abs() > 1e-5
            if bool(far_NH.all(-1).any()):
                raise UserError(self._outside(temperature_N, "one of"))
        elif self.token_NK.shape[-1] < vocabulary:
            cold_N, cold_H = 1 / temperature_N, 1 / kept_H
            if bool(((cold_N > cold_H[0] * (1 + 1e-5)) | (cold_N < cold_H[-1] * (1 - 1e-5))).any()):
                raise UserError(self._outside(temperature_N, "between"))

    def cells(self, temperature_N: Tensor, logq_NV: Tensor) -> tuple[Tensor, Tensor]:
        """`laws` at temperatures that `check` has let pass; no value is read on the host."""
        z_NK = self.logit_NK / temperature_N[:, None]
        logq_NK = logq_NV.gather(-1, self.token_NK)
        if self.drawn_at is not None:
            return self._weighted(temperature_N, z_NK, logq_NK)
        if self.token_NK.shape[-1] == logq_NV.shape[-1]:
            return z_NK.log_softmax(-1), logq_NK
        cell_NC = torch.cat([z_NK, self._tail(temperature_N)[:, None].to(z_NK.dtype)], -1)
        rest_N1 = logq_NV.scatter(-1, self.token_NK, -torch.inf).logsumexp(-1, keepdim=True)
        return cell_NC.log_softmax(-1), torch.cat([logq_NK, rest_N1], -1)

    def _weighted(self, temperature_N: Tensor, z_NK: Tensor, logq_NK: Tensor) -> tuple[Tensor, Tensor]:
        assert self.drawn_at is not None
        logp_NK = z_NK - self._exactly(temperature_N)[:, None]
        drawn_N = torch.full_like(temperature_N, self.drawn_at)
        proposal_NK = self.logit_NK / self.drawn_at - self._exactly(drawn_N)[:, None]
        weight_NK = (logp_NK - proposal_NK) - math.log(z_NK.shape[-1])
        return weight_NK, weight_NK + logq_NK - logp_NK

    def _exactly(self, temperature_N: Tensor) -> Tensor:
        """The logsumexp at temperatures that are among those kept."""
        gap_NH = (temperature_N[:, None] - temperature_N.new_tensor(self.temperatures)).abs()
        return self.logsum_NH.gather(-1, gap_NH.argmin(-1, keepdim=True)).squeeze(-1)

    def _tail(self, temperature_N: Tensor) -> Tensor:
        """The logsumexp of the tail at any temperature between the least and the largest kept."""
        cold_N, cold_H = 1 / temperature_N, 1 / temperature_N.new_tensor(self.temperatures)
        if len(cold_H) == 1:
            return self.logsum_NH[:, 0]
        # cold_H falls: the first of the two neighbours is the colder one.
        right_N = torch.searchsorted(-cold_H, -cold_N.detach()).clamp(1, len(cold_H) - 1)
        share_N = (cold_N - cold_H[right_N]) / (cold_H[right_N - 1] - cold_H[right_N])
        hot_N = self.logsum_NH.gather(-1, right_N[:, None]).squeeze(-1)
        return hot_N + share_N * (self.logsum_NH.gather(-1, right_N[:, None] - 1).squeeze(-1) - hot_N)

    def _outside(self, temperature_N: Tensor, relation: str) -> str:
        low, high = temperature_N.min(), temperature_N.max()
        kept = ", ".join(f"{temperature:g}" for temperature in self.temperatures)
        return (
            f"the loss temperature must be {relation} those of the cached teacher, {kept}, got {low:g} to {high:g}: "
            "cache it again with other teacher.temperatures, or change model.temperature"
        )


def top_k(logits_NV: Tensor, k: int, temperatures: Sequence[float]) -> SparseLogits:
    """The k largest logits, and the logsumexp of the others at each temperature (-inf where none is left).

    Args:
        logits_NV: the teacher's logits.
        k: at least 1; all where it is more than V.
        temperatures: increasing, above 0.

    >>> kept = top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2, [1.0])
    >>> kept.token_NK, kept.logit_NK, kept.logsum_NH
    (tensor([[1, 2]]), tensor([[3., 2.]]), tensor([[1.]]))
    """
    logit_NK, token_NK = logits_NV.topk(min(k, logits_NV.shape[-1]), -1)
    rest_NV = logits_NV.scatter(-1, token_NK, -torch.inf)
    return SparseLogits(token_NK, logit_NK, _logsums(rest_NV, temperatures), tuple(temperatures))


def draw(uniform_NK: Tensor, logits_NV: Tensor, at: float, temperatures: Sequence[float]) -> SparseLogits:
    """K independent samples of the law at one temperature, and the logsumexp of all logits at each.

    Args:
        uniform_NK: uniform noise in [0, 1), float64.
        logits_NV: the teacher's logits.
        at: the temperature to sample at, one of `temperatures`.
        temperatures: increasing, above 0.

    >>> kept = draw(torch.tensor([[0.1, 0.9]]), torch.tensor([[0.0, 0.0]]), 1.0, [1.0])
    >>> kept.token_NK, kept.logsum_NH
    (tensor([[0, 1]]), tensor([[0.6931]]))
    """
    below_NV = (logits_NV.double() / at).softmax(-1).cumsum(-1)
    token_NK = torch.searchsorted(below_NV, uniform_NK.to(below_NV) * below_NV[:, -1:], right=True)
    token_NK = token_NK.clamp(max=logits_NV.shape[-1] - 1)
    logit_NK = logits_NV.gather(-1, token_NK)
    return SparseLogits(token_NK, logit_NK, _logsums(logits_NV, temperatures), tuple(temperatures), at)


def _logsums(logits_NV: Tensor, temperatures: Sequence[float]) -> Tensor:
    return torch.stack([(logits_NV / temperature).logsumexp(-1) for temperature in temperatures], -1)
