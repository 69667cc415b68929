"""All that validation reports of a pair of models, from one softmax per model and temperature (floor 1).

Axes: N tokens of the draft, U positions of the target, V its vocabulary, R the draft's, A and D target and draft
temperatures, here the same, W those above 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tempspec.core.acceptance import overlaps, positions_at_once, tempered
from tempspec.core.vocabulary import draft_ids

__all__ = ["Survey", "survey"]

_LEAST = torch.finfo(torch.float32).min
"""In place of -inf where a product with a probability of 0 is to be 0."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What a pair of models would do at every token.

    Attributes:
        acceptance_NAD: `acceptance_grid`.
        match_NA: `agreement_grid` at equal temperatures.
        argmax_NA: `argmax_acceptance`.
        entropy_NA: `entropy` of the target.
        covered_NA: `coverage` of the draft's ids; None where it has all.
    """

    acceptance_NAD: Tensor
    match_NA: Tensor
    argmax_NA: Tensor
    entropy_NA: Tensor
    covered_NA: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["Survey"]) -> "Survey":
        """One survey of the tokens of several, at least one."""
        columns = zip(*(part.values() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def of(self, tokens: Tensor | slice) -> "Survey":
        """That of some of the tokens."""
        return Survey(*(value[tokens] for value in self.values()))

    def values(self) -> list[Tensor]:
        """All of them, in order."""
        names = ("acceptance_NAD", "match_NA", "argmax_NA", "entropy_NA", "covered_NA")
        return [value for name in names if (value := getattr(self, name)) is not None]


def survey(
    logits_p_UV: Tensor,
    logits_q_NR: Tensor,
    temperatures: Sequence[float],
    *,
    index_N: Tensor | None = None,
    ids_R: Tensor | None = None,
) -> Survey:
    """All that validation reports, from one softmax per model and temperature above 0.

    Equal to the functions of `tempspec.core.acceptance`, each of which tempers anew; nothing larger than the laws of a
    few positions is held.

    Args:
        logits_p_UV: the target's logits.
        logits_q_NR: the draft's logits; R may differ from V.
        temperatures: of target and draft, at least 0 each; 0 is the one-hot law of the argmax.
        index_N: the target's position of each of the draft's tokens, int64; None where these are the same, U = N.
            Tokens of one position cost least as neighbours.
        ids_R: the target's ids that the draft's logits are of, ascending; None where both count alike.

    >>> found = survey(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), [0.0, 1.0])
    >>> found.acceptance_NAD[0, 1], found.match_NA, found.argmax_NA, found.entropy_NA
    (tensor([0.5000, 0.7689]), tensor([[1.0000, 0.5000]]), tensor([[1.0000, 0.5000]]), tensor([[0.0000, 0.6931]]))
    """
    rows = positions_at_once(logits_p_UV if index_N is None else logits_q_NR, 2 * len(temperatures))
    parts = []
    for begin in range(0, max(len(logits_q_NR), 1), rows):
        here, place, own_N = slice(begin, begin + rows), slice(begin, begin + rows), None
        if index_N is not None:
            place, own_N = index_N[here].unique(return_inverse=True)
        parts.append(_few(logits_p_UV[place].detach(), logits_q_NR[here].detach(), temperatures, own_N, ids_R))
    return Survey.joined(parts)


def _few(
    logits_p_UV: Tensor,
    logits_q_NR: Tensor,
    temperatures: Sequence[float],
    index_N: Tensor | None,
    ids_R: Tensor | None,
) -> Survey:
    """The survey of a few positions. At T = 0 a law is one id: its overlap with another is what that gives the id."""

    def of_tokens(value: Tensor, axis: int = 0) -> Tensor:
        return value if index_N is None else value.index_select(axis, index_N)

    warm = [temperature for temperature in temperatures if temperature > 0]
    p_WUV, q_WNR = tempered(logits_p_UV, warm), tempered(logits_q_NR, warm)
    best_U, best_q_N = logits_p_UV.argmax(-1), logits_q_NR.argmax(-1)
    entropy_UA = _entropy(logits_p_UV, p_WUV, best_U, temperatures)
    if ids_R is None:
        common = min(logits_p_UV.shape[-1], logits_q_NR.shape[-1])
        p_WUR, q_WNR, covered_NA = p_WUV[..., :common], q_WNR[..., :common], None
    else:
        p_WUR, best_U = p_WUV.index_select(-1, ids_R), draft_ids(best_U, ids_R)
        covered_NA = of_tokens(_over(temperatures, p_WUR.sum(-1), (best_U < len(ids_R)).to(p_WUV.dtype)))
    p_WNR, best_p_N = of_tokens(p_WUR, 1), of_tokens(best_U)

    at_best_q_WN, at_best_p_WN = _at(p_WNR, best_q_N), _at(q_WNR, best_p_N)
    equal_N = (best_p_N == best_q_N).to(p_WUV.dtype)
    overlap_NWW = overlaps(p_WNR, q_WNR) if warm else p_WNR.new_empty(len(best_q_N), 0, 0)
    sampled = [
        _over(temperatures, overlap_NW.T, at_best_q_N)
        for overlap_NW, at_best_q_N in zip(overlap_NWW.unbind(1), at_best_q_WN, strict=True)
    ]
    return Survey(
        _over(temperatures, sampled, _over(temperatures, at_best_p_WN, equal_N), 1),
        _over(temperatures, torch.linalg.vecdot(p_WNR, q_WNR), equal_N),
        _over(temperatures, at_best_q_WN, equal_N),
        of_tokens(entropy_UA),
        covered_NA,
    )


def _over(temperatures: Sequence[float], warm: Iterable[Tensor], cold: Tensor, axis: int = -1) -> Tensor:
    """One value for each temperature, stacked: `cold` at 0, the next of `warm` at any other."""
    values = iter(warm)
    return torch.stack([next(values) if temperature > 0 else cold for temperature in temperatures], axis)


def _entropy(logits_UV: Tensor, law_WUV: Tensor, best_U: Tensor, temperatures: Sequence[float]) -> Tensor:
    """`entropy`, `[U, A]`: log Z less the mean exponent, both counted from the largest."""
    warm = [temperature for temperature in temperatures if temperature > 0]
    below_UV = (logits_UV - logits_UV.amax(-1, keepdim=True)).to(law_WUV.dtype).clamp(min=_LEAST)
    entropies = [
        -top_U.log() - torch.linalg.vecdot(law_UV, below_UV) / temperature
        for top_U, law_UV, temperature in zip(_at(law_WUV, best_U), law_WUV, warm, strict=True)
    ]
    return _over(temperatures, entropies, below_UV.new_zeros(len(best_U)))


def _at(law_TNV: Tensor, id_N: Tensor) -> Tensor:
    """What laws give one id of each position, `[T, N]`; nothing where they do not have it."""
    size = law_TNV.shape[-1]
    given_TN = law_TNV.gather(-1, id_N.clamp(max=size - 1).expand(len(law_TNV), -1)[..., None]).squeeze(-1)
    return torch.where(id_N < size, given_TN, 0.0)
