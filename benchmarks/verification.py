"""What verification costs: each rule against one softmax over the tensor that it verifies, on the CPU.

    python benchmarks/verification.py [--quick]

Chains of 4 tokens and trees of 16 nodes, 32 rows, 32,000 tokens, float32; interleaved, medians.

Axes: B batch, K drafted (tree nodes), V vocabulary.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter

import torch
from goals import Goal, finish, parse
from torch import Tensor

from tempspec.core.tree_verification import Siblings, sibling_law
from tempspec.core.trees import level_parents
from tempspec.decoding.noise import RoundNoise
from tempspec.interfaces import Draft, Verifier
from tempspec.plugins.tree_verifiers import KSequential, RecursiveRejection, Traversal
from tempspec.plugins.verifiers import (
    BlockVerification,
    GreedyMatch,
    GumbelCoupling,
    SampledMatch,
    TokenwiseRejection,
    Typical,
)

CHAIN_GOAL, TREE_GOAL = 1.5, 3.0
TREES: dict[str, tuple[tuple[int, ...], Siblings]] = {
    "4 paths of 4": (level_parents([4, 1, 1, 1]), "independent"),
    "binary, distinct": ((*level_parents([2, 2, 2]), 6, 7), "distinct"),
    "4 x 3, greedy": (level_parents([4, 3]), "greedy"),
}


@dataclass(frozen=True)
class Case:
    """A rule and what it verifies."""

    rule: Verifier
    label: str
    logp_BKV: Tensor
    draft: Draft

    def verify(self) -> None:
        """One round."""
        row_B = torch.arange(len(self.logp_BKV))
        self.rule.verify(self.logp_BKV, self.draft, RoundNoise(row_B, row_B, row_B))


def main() -> None:
    """Time every rule."""
    options = parse(ArgumentParser(description=__doc__))
    cases = list(_cases(rows=32, vocabulary=32_000))
    ratios = _ratios(cases, repeats=3 if options.quick else 15)
    goals = []
    for case, ratio in zip(cases, ratios, strict=True):
        print(f"{type(case.rule).__name__:22s} {case.label:30s}{ratio:6.2f} softmaxes")
        name = f"{type(case.rule).__name__}, {case.label}, in softmaxes"
        goals.append(Goal(name, ratio, high=CHAIN_GOAL if case.draft.parent_BK is None else TREE_GOAL, digits=2))
    finish(goals)


def _cases(rows: int, vocabulary: int) -> Iterator[Case]:
    """Every rule on what it verifies."""
    logp_BKV, draft = _chain(rows, 4, vocabulary)
    for chain_rule in (TokenwiseRejection, BlockVerification, GreedyMatch, SampledMatch, GumbelCoupling, Typical):
        yield Case(chain_rule(), "chain of 4", logp_BKV, draft)
    for name, (parents, siblings) in TREES.items():
        logp_BKV, draft = _tree(rows, parents, siblings, vocabulary)
        for tree_rule in (RecursiveRejection, Traversal, KSequential):
            if siblings in tree_rule.siblings:
                yield Case(tree_rule(), f"{len(parents)} nodes, {name}", logp_BKV, draft)


def _ratios(cases: list[Case], repeats: int) -> list[float]:
    """Each rule's median time over the median of the softmaxes before it; all rules take turns, again and again.

    Whoever else uses the machine then slows a part of every rule's samples, and not every sample of one rule.
    """
    seconds: list[list[tuple[float, float]]] = [[] for _ in cases]
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for case, own in zip(cases, seconds, strict=True):
                own.append((_seconds(partial(torch.softmax, case.logp_BKV, -1)), _seconds(case.verify)))
    medians = [[median(column) for column in zip(*own[1:], strict=True)] for own in seconds]
    return [rule / softmax for softmax, rule in medians]


def _seconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def _laws(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(*shape, generator=generator)).log_softmax(-1)


def _chain(rows: int, drafted: int, vocabulary: int) -> tuple[Tensor, Draft]:
    """A draft near the target, sampled from its law."""
    logp_BKV = _laws(rows, drafted + 1, vocabulary, seed=0)
    logq_BKV = (0.8 * logp_BKV[:, :-1] + 0.2 * _laws(rows, drafted, vocabulary, seed=1)).log_softmax(-1)
    token_BK = torch.multinomial(logq_BKV.exp().flatten(0, 1), 1).view(rows, drafted)
    return logp_BKV, Draft(token_BK, torch.full((rows,), drafted), logq_BKV)


def _tree(rows: int, parents: tuple[int, ...], siblings: Siblings, vocabulary: int) -> tuple[Tensor, Draft]:
    """Trees of one shape, children drawn as `siblings` says from a law near the target's at their parent."""
    logp_BKV = _laws(rows, len(parents) + 1, vocabulary, seed=0)
    near_BKV = (0.8 * logp_BKV + 0.2 * _laws(rows, len(parents) + 1, vocabulary, seed=1)).log_softmax(-1)
    taken_BKV = torch.zeros_like(near_BKV, dtype=torch.bool)
    tokens, laws = [], []
    for node, parent in enumerate(parents):
        rank, count = parents[:node].count(parent), parents.count(parent)
        logq_BV, taken_BV = near_BKV[:, parent + 1], taken_BKV[:, parent + 1]
        laws.append(sibling_law(logq_BV, logq_BV, taken_BV, rank, count, siblings))
        tokens.append(torch.multinomial(laws[-1].exp(), 1).squeeze(1))
        taken_BV.scatter_(1, tokens[-1][:, None], True)
    parent_BK = torch.tensor(parents).expand(rows, -1)
    length_B = torch.full((rows,), len(parents))
    return logp_BKV, Draft(torch.stack(tokens, 1), length_B, torch.stack(laws, 1), parent_BK)


if __name__ == "__main__":
    main()
