"""How much acceptance a temperature costs because the laws differ, and how much because the prefixes do (floor 4).

Acceptance at temperature T is usually measured on one of two kinds of text: text that is the same at every T, such as
a validation set, or text that the target itself wrote at T. The second is what is met in decoding. Between a reference
temperature on the fixed text and T on the target's own text two things change, and each is measured by changing it
alone.

Axes: N observations, U prompts, S entries.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tempspec.metrics.bootstrap import REPLICATES, Estimate, Sums, bootstrap_update, difference_estimate
from tempspec.metrics.ratio import to_estimate

__all__ = ["PrefixSplit", "PromptSums", "prefix_split"]


class PromptSums(NamedTuple):
    """What was counted for each prompt: enough for every paired estimate.

    Attributes:
        key_U: the prompts' keys, int64, each once.
        numerator_US: sums, float64.
        denominator_US: sums, float64.
    """

    key_U: Tensor
    numerator_US: Tensor
    denominator_US: Tensor

    @classmethod
    def of(cls, numerator_NS: Tensor, denominator_NS: Tensor, key_N: Tensor) -> "PromptSums":
        """The sums of observations; prompts without a positive denominator are left out."""
        key_U, where_N = key_N.unique(return_inverse=True)
        zeros_US = torch.zeros(len(key_U), numerator_NS.shape[1], dtype=torch.float64, device=key_N.device)
        numerator_US = zeros_US.index_add(0, where_N, numerator_NS.double())
        denominator_US = zeros_US.index_add(0, where_N, denominator_NS.double())
        seen_U = (denominator_US > 0).any(1)
        return cls(key_U[seen_U], numerator_US[seen_U], denominator_US[seen_U])

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> "PromptSums":
        """The sums of rows of one metric of one cell, as `validate` writes them.

        Args:
            rows: each with `prompt_key`, `numerator` and `denominator`.

        >>> row = {"prompt_key": 7, "numerator": 1.5, "denominator": 2.0}
        >>> PromptSums.of_rows([row, row]).numerator_US.tolist()
        [[3.0]]
        """
        held = list(rows)
        numerator_N, denominator_N = (
            torch.tensor([row[name] for row in held], dtype=torch.float64) for name in ("numerator", "denominator")
        )
        key_N = torch.tensor([row["prompt_key"] for row in held], dtype=torch.int64)
        return cls.of(numerator_N[:, None], denominator_N[:, None], key_N)

    @classmethod
    def by(cls, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], "PromptSums"]:
        """Those of rows as in `of_rows`, by the values of some columns.

        >>> rows = [{"set": name, "prompt_key": 7, "numerator": 1.5, "denominator": 2.0} for name in "aba"]
        >>> {key: sums.numerator_US.tolist() for key, sums in PromptSums.by(["set"], rows).items()}
        {('a',): [[3.0]], ('b',): [[1.5]]}
        """
        grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in rows:
            grouped.setdefault(tuple(row[column] for column in columns), []).append(row)
        return {key: cls.of_rows(held) for key, held in grouped.items()}

    @classmethod
    def joined(cls, parts: Sequence["PromptSums"]) -> "PromptSums":
        """The sums of several sets of observations, such as of several seeds; at least one.

        >>> one = PromptSums.of_rows([{"prompt_key": 7, "numerator": 1.5, "denominator": 2.0}])
        >>> PromptSums.joined([one, one]).numerator_US.tolist()
        [[3.0]]
        """
        key_N, numerator_NS, denominator_NS = map(torch.cat, zip(*parts, strict=True))
        return cls.of(numerator_NS, denominator_NS, key_N)

    @classmethod
    def beside(cls, entries: Sequence["PromptSums"]) -> "PromptSums":
        """Sums of one entry each as the entries of one; where one lacks a prompt, nothing was counted.

        >>> one, other = (PromptSums.of_rows([{"prompt_key": 7, "numerator": n, "denominator": 2.0}]) for n in (1.5, 1))
        >>> PromptSums.beside([one, other]).numerator_US.tolist()
        [[1.5, 1.0]]
        """
        wide = []
        for place, (key_U, *columns) in enumerate(entries):
            around = place, len(entries) - 1 - place
            wide.append(cls(key_U, *(torch.nn.functional.pad(column_U1, around) for column_U1 in columns)))
        return cls.joined(wide)

    def entry(self, index: int) -> "PromptSums":
        """One entry alone, with S = 1."""
        return PromptSums(self.key_U, self.numerator_US[:, [index]], self.denominator_US[:, [index]])

    def only(self, key_U: Tensor) -> "PromptSums":
        """The prompts that are among these keys."""
        kept_U = torch.isin(self.key_U, key_U)
        return PromptSums(*(part[kept_U] for part in self))

    def sums(self, replicates: int = REPLICATES) -> Sums:
        """What intervals are computed from."""
        return bootstrap_update(self.numerator_US, self.denominator_US, self.key_U, replicates)


@dataclass(frozen=True, slots=True)
class PrefixSplit:
    """A fall of acceptance in two parts; positive where acceptance is lost. `fall = laws + prefixes`.

    Attributes:
        fall: acceptance at the reference temperature on the fixed text, minus that at T on text sampled at T.
        laws: the part on the same prefixes: reference minus T, both on the fixed text.
        prefixes: the part at the same temperatures: T on the fixed text minus T on text sampled at T.
    """

    fall: Estimate
    laws: Estimate
    prefixes: Estimate


def prefix_split(
    reference: PromptSums, fixed: PromptSums, sampled: PromptSums, *, replicates: int = REPLICATES
) -> PrefixSplit:
    """Split a fall of acceptance into what the laws cost and what the prefixes cost.

    `alpha(T_ref, fixed) - alpha(T, sampled)` is `[alpha(T_ref, fixed) - alpha(T, fixed)]`, where only the laws change,
    plus `[alpha(T, fixed) - alpha(T, sampled)]`, where only the prefixes do. The order matters: laws first, on the
    fixed text. All three are token-weighted ratios over the prompts that are in all three arguments, with paired 95%
    intervals over those prompts.

    Args:
        reference: acceptance at the reference temperature on the fixed text, S = 1.
        fixed: acceptance at T on the fixed text.
        sampled: acceptance at T on text that the target wrote at T, from the same prompts.
        replicates: bootstrap replicates.

    >>> def one(*rows):
    ...     return PromptSums.of_rows(dict(zip(("prompt_key", "numerator", "denominator"), row)) for row in rows)
    >>> split = prefix_split(one((7, 9, 10), (8, 8, 10)), one((7, 8, 10), (8, 7, 10)), one((7, 5, 10), (8, 4, 10)))
    >>> [f"{part.value:.2f}" for part in (split.fall, split.laws, split.prefixes)]
    ['0.40', '0.10', '0.30']
    """
    common_U = reference.key_U[torch.isin(reference.key_U, fixed.key_U) & torch.isin(reference.key_U, sampled.key_U)]
    first, second, third = (part.only(common_U).sums(replicates) for part in (reference, fixed, sampled))
    fall, laws, prefixes = (
        to_estimate(difference_estimate(*pair))[0] for pair in ((first, third), (first, second), (second, third))
    )
    return PrefixSplit(fall, laws, prefixes)
