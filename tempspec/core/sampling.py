"""From logits to the law that is sampled, and from a uniform to a token (floor 1).

Axes: B batch, N positions, V vocabulary, M likely tokens.
"""

import torch
from torch import Tensor

from tempspec.core import hosts

_BLOCK = 128
"""Tokens that inversion sums at once."""

_WHOLE = 1 << 16
"""Weights up to so many, and those of one block, are summed as a whole: fewer operations, but more memory each."""

_BELOW_ONE = 1 - 2.0**-52

_LIKELY = 1024
"""Tokens that top-p looks at first; a whole vocabulary is sorted only where these have not the mass."""


def truncate(
    logp_BNV: Tensor,
    *,
    top_k_B: Tensor | None = None,
    top_p_B: Tensor | None = None,
    min_p_B: Tensor | None = None,
    most_k: int = 0,
) -> Tensor:
    """Top-k, then top-p, then min-p, each with its own value per row, renormalised; log-space `[B, N, V]`.

    Follows the order and the tie rules of transformers' logits processors: top-k keeps all tokens that tie with the
    k-th; top-p keeps the smallest set of most likely tokens whose mass reaches p; min-p keeps tokens at least min-p
    times as likely as the most likely one. Each step sees the law that the step before left.

    Args:
        logp_BNV: log-probabilities.
        top_k_B: int64 `[B]`; 0 keeps all.
        top_p_B: `[B]` in (0, 1]; 1 keeps all.
        min_p_B: `[B]` in [0, 1]; 0 keeps all.
        most_k: the largest of `top_k_B`, where the host knows it; 0 reads it from the device.
    """
    if top_k_B is not None:
        rare = logp_BNV < _kth_largest(logp_BNV, top_k_B, most_k or int(top_k_B.max()))
        logp_BNV = logp_BNV.masked_fill(rare, -torch.inf).log_softmax(-1)
    if top_p_B is not None:
        rare = _outside_nucleus(logp_BNV, top_p_B.to(logp_BNV.dtype).view(-1, 1, 1))
        logp_BNV = logp_BNV.masked_fill(rare, -torch.inf).log_softmax(-1)
    if min_p_B is not None:
        floor = logp_BNV.amax(-1, keepdim=True) + min_p_B.to(logp_BNV.dtype).log().view(-1, 1, 1)
        logp_BNV = logp_BNV.masked_fill(logp_BNV < floor, -torch.inf).log_softmax(-1)
    return logp_BNV


def _kth_largest(logp_BNV: Tensor, top_k_B: Tensor, most_k: int) -> Tensor:
    """The k-th largest value, `[B, N, 1]`; -inf for rows that keep all."""
    most_k = max(1, min(most_k, logp_BNV.shape[-1]))
    place_BN1 = (top_k_B.clamp(1, most_k) - 1).view(-1, 1, 1).expand(*logp_BNV.shape[:-1], 1)
    floor_BN1 = logp_BNV.topk(most_k, -1).values.gather(-1, place_BN1)
    return floor_BN1.masked_fill(top_k_B.view(-1, 1, 1) <= 0, -torch.inf)


def _outside_nucleus(logp_BNV: Tensor, p_B11: Tensor) -> Tensor:
    """The tokens that top-p drops, bool `[B, N, V]`; among equals the lowest ids stay.

    The most likely tokens alone decide, where they have the mass. On a GPU, whose sums are not in order, sums over two
    different widths may round apart: there all are sorted.
    """
    if hosts.reads_free(logp_BNV) and logp_BNV.shape[-1] >= 4 * _LIKELY:
        likely_BNM = logp_BNV.topk(_LIKELY, -1).values
        up_to_BNM = likely_BNM.exp().cumsum(-1)
        if bool(((up_to_BNM[..., -1:] >= p_B11) | (p_B11 >= 1)).all()):
            kept_BN1 = (up_to_BNM - likely_BNM.exp() < p_B11).sum(-1, keepdim=True)
            return _after_the_first(logp_BNV, likely_BNM, kept_BN1) & (p_B11 < 1)
    sorted_BNV, order_BNV = logp_BNV.sort(stable=True, dim=-1, descending=True)
    before_BNV = sorted_BNV.exp().cumsum(-1) - sorted_BNV.exp()
    drop_BNV = torch.zeros_like(logp_BNV, dtype=torch.bool)
    return drop_BNV.scatter_(-1, order_BNV, (before_BNV >= p_B11) & (p_B11 < 1))


def _after_the_first(logp_BNV: Tensor, likely_BNM: Tensor, kept_BN1: Tensor) -> Tensor:
    """All but the first `kept` tokens in the order of their likelihood, then of their ids."""
    last_BN1 = likely_BNM.gather(-1, kept_BN1.clamp(min=1) - 1)
    above_BNV, equal_BNV = logp_BNV > last_BN1, logp_BNV == last_BN1
    room_BN1 = kept_BN1 - above_BNV.sum(-1, keepdim=True)
    return ~(above_BNV | (equal_BNV & (equal_BNV.cumsum(-1, dtype=torch.int32) <= room_BN1)))


def one_hot_log(token: Tensor, vocabulary: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The log-law that is certain of `token [...]`: 0 there and -inf elsewhere, `[..., V]`."""
    law = torch.full((*token.shape, vocabulary), -torch.inf, dtype=dtype, device=token.device)
    return law.scatter_(-1, token[..., None], 0.0)


def log_law(
    logits_BNV: Tensor,
    temperature_B: Tensor,
    *,
    top_k_B: Tensor | None = None,
    top_p_B: Tensor | None = None,
    min_p_B: Tensor | None = None,
    most_k: int = 0,
    any_greedy: bool = True,
) -> Tensor:
    """The log-law that decoding samples from, float32 or better, `[B, N, V]`.

    Args:
        logits_BNV: raw logits, any floating type.
        temperature_B: `[B]`, at least 0; 0 gives the one-hot law of the argmax (lowest id among ties).
        top_k_B: see `truncate`.
        top_p_B: see `truncate`.
        min_p_B: see `truncate`.
        most_k: see `truncate`.
        any_greedy: pass False when no row has temperature 0, to skip that branch.

    >>> log_law(torch.tensor([[[0.0, 1.0, 0.0]]]), torch.tensor([0.0])).exp()
    tensor([[[0., 1., 0.]]])
    """
    logits_BNV = logits_BNV.double() if logits_BNV.dtype == torch.float64 else logits_BNV.float()
    temperature_B11 = temperature_B.to(logits_BNV.dtype).view(-1, 1, 1)
    divisor = torch.where(temperature_B11 > 0, temperature_B11, 1.0) if any_greedy else temperature_B11
    logp_BNV = (logits_BNV / divisor).log_softmax(-1)
    logp_BNV = truncate(logp_BNV, top_k_B=top_k_B, top_p_B=top_p_B, min_p_B=min_p_B, most_k=most_k)
    if any_greedy:
        greedy = one_hot_log(logits_BNV.argmax(-1), logits_BNV.shape[-1], logits_BNV.dtype)
        logp_BNV = torch.where(temperature_B11 > 0, logp_BNV, greedy)
    return logp_BNV


def inverse_cdf(weight: Tensor, uniform: Tensor) -> Tensor:
    """Sample by inversion: the first index whose cumulative weight exceeds `uniform` times the total.

    Args:
        weight: non-negative, `[..., V]`, need not sum to 1; a zero weight is never returned unless all are zero.
        uniform: in [0, 1), `[...]`.

    Returns:
        int64 `[...]`.

    >>> inverse_cdf(torch.tensor([0.0, 1.0, 3.0]), torch.tensor(0.25)).item()
    2
    """
    vocabulary = weight.shape[-1]
    if vocabulary <= _BLOCK or weight.numel() <= _WHOLE:
        return _invert(weight.cumsum(-1, dtype=torch.float64), uniform)[0]
    # Which block of tokens first, then which of its tokens: one pass over the weights, whatever V.
    padding = -vocabulary % _BLOCK
    padded = (torch.nn.functional.pad(weight, (0, padding)) if padding else weight).unflatten(-1, (-1, _BLOCK))
    mass = padded.sum(-1, dtype=torch.promote_types(weight.dtype, torch.float32)).double()
    cumulative = mass.cumsum(-1)
    block, threshold = _invert(cumulative, uniform)
    before = cumulative.gather(-1, block[..., None]) - mass.gather(-1, block[..., None])
    members = padded.gather(-2, block[..., None, None].expand(*block.shape, 1, _BLOCK)).squeeze(-2)
    cumulative = members.cumsum(-1, dtype=torch.float64)
    threshold = torch.minimum((threshold - before).clamp_(min=0.0), cumulative[..., -1:] * _BELOW_ONE)
    index = block * _BLOCK + torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    return index.clamp_(max=vocabulary - 1)


def _invert(cumulative: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The first index `[...]` whose cumulative weight exceeds `uniform` times the total, and that threshold `[..., 1]`.

    Rounding may lift `u * total` to the total itself; the factor keeps it below, so that some index exceeds it.
    """
    threshold = cumulative[..., -1:] * (uniform * _BELOW_ONE)[..., None]
    index = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    return index.clamp_(max=cumulative.shape[-1] - 1), threshold
