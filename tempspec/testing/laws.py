"""Pairs of target and draft laws that are known exactly, small enough to write down (floor 3).

The law at depth i depends on all i tokens before it, so that a rule which looks at the wrong position is found out.

Axes: B rows, K drafted, V vocabulary, D tokens of a joint law; a prefix of i tokens has a code in 0..V^i - 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tempspec.core.noise import gumbel
from tempspec.core.sampling import one_hot_log
from tempspec.core.trees import depths

Depths = tuple[Tensor, ...]


@dataclass(frozen=True)
class LawPair:
    """A target's and a draft's log-laws given every prefix.

    Attributes:
        logp: one table per depth 0..K, `[V^i, V]`: the target's law after each prefix of i tokens.
        logq: one table per depth 0..K-1, likewise: the draft's.
    """

    logp: Depths
    logq: Depths

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.logp[0].shape[-1]

    @property
    def longest(self) -> int:
        """K, the longest draft."""
        return len(self.logq)

    def rows(self, token_BK: Tensor) -> tuple[Tensor, Tensor]:
        """The laws along each row of tokens: the target's `[B, K+1, V]` and the draft's `[B, K, V]`."""
        code_BK = prefix_codes(token_BK, self.vocabulary)
        logp_BKV = torch.stack([table[code] for table, code in zip(self.logp, code_BK.T, strict=True)], 1)
        if not self.logq:
            return logp_BKV, logp_BKV[:, :0]
        return logp_BKV, torch.stack([table[code] for table, code in zip(self.logq, code_BK.T[:-1], strict=True)], 1)

    def tree(self, token_BN: Tensor, parents: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The laws in each row's tree: the target's after root and nodes `[B, N+1, V]`, the draft's at each parent.

        The second is `[B, N, V]`: what a node is drawn from before its siblings are looked at.
        """
        code_BN, depth = tree_codes(token_BN, parents, self.vocabulary), (0, *depths(parents))
        logp_BNV = torch.stack([self.logp[d][code_B] for d, code_B in zip(depth, code_BN.T, strict=True)], 1)
        logq = [self.logq[depth[parent + 1]][code_BN[:, parent + 1]] for parent in parents]
        return logp_BNV, torch.stack(logq, 1)

    def target_law(self) -> Tensor:
        """The target's joint law of the first K + 1 tokens, `[V^(K+1)]`."""
        return self.complete((torch.ones(1, 1, dtype=torch.float64), *([None] * (self.longest + 1))))[0]

    def complete(self, mass: tuple[Tensor | None, ...]) -> Tensor:
        """The joint law of K + 1 tokens when each prefix is continued by the target, `[G, V^(K+1)]`.

        Args:
            mass: per depth 0..K+1 the probability that exactly this prefix was emitted, `[G, V^i]`; None is no mass.
        """
        law_GD = torch.zeros(1, 1, dtype=torch.float64) if mass[0] is None else mass[0]
        for table, emitted_GD in zip(self.logp, mass[1:], strict=True):
            law_GD = (law_GD[..., None] * table.double().exp()).flatten(1)
            law_GD = law_GD if emitted_GD is None else law_GD + emitted_GD
        return law_GD

    def to(self, dtype: torch.dtype) -> "LawPair":
        """The same laws, rounded to another floating type."""
        return LawPair(tuple(table.to(dtype) for table in self.logp), tuple(table.to(dtype) for table in self.logq))


def prefix_codes(token_BK: Tensor, vocabulary: int) -> Tensor:
    """The codes of each row's prefixes of 0..K tokens, int64 `[B, K+1]`.

    >>> prefix_codes(torch.tensor([[1, 0, 2]]), vocabulary=3)
    tensor([[ 0,  1,  3, 11]])
    """
    codes = [torch.zeros(len(token_BK), dtype=torch.int64)]
    for token_B in token_BK.T:
        codes.append(codes[-1] * vocabulary + token_B)
    return torch.stack(codes, 1)


def tree_codes(token_BN: Tensor, parents: Sequence[int], vocabulary: int) -> Tensor:
    """The codes of the prefixes that end at the root and at each node, int64 `[B, N+1]`.

    >>> tree_codes(torch.tensor([[1, 0, 2]]), (-1, -1, 0), vocabulary=3)
    tensor([[0, 1, 0, 5]])
    """
    codes = [torch.zeros(len(token_BN), dtype=torch.int64)]
    for token_B, parent in zip(token_BN.T, parents, strict=True):
        codes.append(codes[parent + 1] * vocabulary + token_B)
    return torch.stack(codes, 1)


def all_chains(vocabulary: int, length: int) -> Tensor:
    """Every chain of tokens, in the order of its code, int64 `[V^length, length]`.

    >>> all_chains(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    code_B = torch.arange(vocabulary**length)
    digits = [code_B // vocabulary**place % vocabulary for place in reversed(range(length))]
    return torch.stack(digits, 1) if digits else torch.zeros(1, 0, dtype=torch.int64)


# ---------------------------------------------------------------------------------------------------------------------
# The matrix of cases
# ---------------------------------------------------------------------------------------------------------------------


def context_free(p_V: Tensor, q_V: Tensor, length: int) -> LawPair:
    """The same two laws (not their logarithms) after every prefix."""

    def tables(law_V: Tensor, depths: int) -> Depths:
        return tuple(law_V.double().log().expand(len(law_V) ** depth, -1) for depth in range(depths))

    return LawPair(tables(p_V, length + 1), tables(q_V, length))


def _tables(vocabulary: int, depths: int, *key: int, spread: float = 1.0) -> Depths:
    """Random log-laws: `spread` is the scale of the logits."""
    token_V = torch.arange(vocabulary)
    logits = [gumbel(*key, depth, torch.arange(vocabulary**depth)[:, None], token_V) for depth in range(depths)]
    return tuple((spread * table).log_softmax(-1) for table in logits)


def _one_hot(tables: Depths) -> Depths:
    """The laws at temperature 0."""
    return tuple(one_hot_log(table.argmax(-1), table.shape[-1], table.dtype) for table in tables)


def _without(tables: Depths, drop: Callable[[Tensor, Tensor], Tensor]) -> Depths:
    """The laws cut to the tokens that `drop(code, token)` spares, renormalised; the most likely spared token stays."""
    token_V = torch.arange(tables[0].shape[-1])
    cut = [table.masked_fill(drop(torch.arange(len(table))[:, None], token_V), -torch.inf) for table in tables]
    return tuple(table.log_softmax(-1) for table in cut)


def law_cases(vocabulary: int, longest: int, seed: int = 0) -> dict[str, LawPair]:
    """The pairs that a verifier is checked on, by name: ordinary laws and the edges that break rules.

    Args:
        vocabulary: V, at least 2.
        longest: K.
        seed: of the random tables.
    """
    p, other = _tables(vocabulary, longest + 1, seed, 1), _tables(vocabulary, longest + 1, seed, 2)
    q = other[:longest]
    near = tuple((0.9 * a + 0.1 * b).log_softmax(-1) for a, b in zip(p[:longest], q, strict=True))
    cold_p, cold_q = (_tables(vocabulary, longest + 1, seed, key, spread=40.0) for key in (3, 4))
    return {
        "unlike laws": LawPair(p, q),
        "near laws": LawPair(p, near),
        "equal laws": LawPair(p, p[:longest]),
        "laws with zeros": LawPair(
            _without(p, lambda code, token: (token + code) % vocabulary == 0),
            _without(q, lambda code, token: (token + 2 * code) % vocabulary == 1),
        ),
        "disjoint laws": LawPair(
            _without(p, lambda code, token: token % 2 == 0), _without(q, lambda code, token: token % 2 == 1)
        ),
        "sharp laws": LawPair(cold_p, cold_q[:longest]),
        "one-hot target": LawPair(_one_hot(p), q),
        "one-hot draft": LawPair(p, _one_hot(q)),
        "one-hot target and draft": LawPair(_one_hot(p), _one_hot(near)),
    }
