"""A verifier's exact laws: of what a round emits and of what it accepts (floor 3).

`tempspec.testing.outcomes` runs a verifier under every outcome of its noise. With every drafted chain as a row, that
gives the joint law of the emitted tokens without a sample: in float64, to rounding.

Axes: B rows, K drafted, V vocabulary, G groups of rows (one law each).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tempspec.core.tree_verification import sibling_law
from tempspec.core.trees import depths, path
from tempspec.interfaces import Draft, Siblings, Verdict, Verifier
from tempspec.testing.errors import ConformanceError
from tempspec.testing.laws import LawPair, all_chains
from tempspec.testing.outcomes import Outcome, outcomes

__all__ = [
    "LawError",
    "Rounds",
    "accepted_law",
    "all_rounds",
    "all_trees",
    "check_range",
    "emitted_law",
    "emitted_under",
    "joined",
    "law_error",
    "mean_accepted",
    "path_codes",
    "reached_under",
]

# ---------------------------------------------------------------------------------------------------------------------
# Every draft of a pair of laws
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounds:
    """One batch that holds every chain a draft can be, for several ways to choose its length.

    Attributes:
        pair: the laws.
        draft: the drafts, ragged.
        logp_BKV: the target's laws along them.
        weight_B: the probability of the row's chain under the draft.
        group_B: which way to choose the length the row belongs to, 0..G-1.
        groups: the ways' names; the weights of each add up to 1.
    """

    pair: LawPair
    draft: Draft
    logp_BKV: Tensor
    weight_B: Tensor
    group_B: Tensor
    groups: tuple[str, ...]


def all_rounds(pair: LawPair) -> Rounds:
    """Drafts of every length 0..K, and drafts that stop after the first token 0, each in full.

    After a row's length are tokens and laws that mean nothing: another chain's, never one the row could want.
    """
    longest = pair.longest
    chain_BK = all_chains(pair.vocabulary, longest)
    groups = [f"{length} drafted" for length in range(longest + 1)]
    lengths = [torch.full((len(chain_BK),), length, dtype=torch.int64) for length in range(longest + 1)]
    if longest > 1:
        groups.append("drafts that stop after token 0")
        lengths.append(((chain_BK != 0).long().cumprod(-1).sum(-1) + 1).clamp(max=longest))
    group_B = torch.arange(len(groups)).repeat_interleave(len(chain_BK))
    token_BK, length_B = chain_BK.repeat(len(groups), 1), torch.cat(lengths)
    logp_BKV, logq_BKV = pair.rows(token_BK)
    chance_BK = logq_BKV.double().exp().gather(-1, token_BK[..., None]).squeeze(-1)
    draft = Draft(token_BK, length_B, logq_BKV)
    return _possible(Rounds(pair, draft, logp_BKV, chance_BK.prod(-1), group_B, tuple(groups)))


def _possible(rounds: Rounds) -> Rounds:
    """The rows that have any probability, with what comes after their lengths replaced by the reverse row's."""
    keep_B = rounds.weight_B > 0
    draft = rounds.draft
    token_BK, logq_BKV, logp_BKV = draft.token_BK[keep_B], draft.logq_BKV[keep_B], rounds.logp_BKV[keep_B]
    length_B = draft.length_B[keep_B]
    position_K = torch.arange(rounds.pair.longest + 1)
    real_BK1, known_BK11 = (position_K[:-1] < length_B[:, None]), (position_K <= length_B[:, None])[..., None]
    draft = Draft(
        torch.where(real_BK1, token_BK, token_BK.flip(0)),
        length_B,
        torch.where(real_BK1[..., None], logq_BKV, logq_BKV.flip(0)),
    )
    logp_BKV = torch.where(known_BK11, logp_BKV, logp_BKV.flip(0))
    return Rounds(rounds.pair, draft, logp_BKV, rounds.weight_B[keep_B], rounds.group_B[keep_B], rounds.groups)


def all_trees(pair: LawPair, parents: Sequence[int], siblings: Siblings) -> Rounds:
    """Every tree of one shape that drafting can give, cut after each level and in the middle of the last.

    After a row's length are the tokens and laws of the reverse row.

    Args:
        pair: the laws; K is at least the tree's depth.
        parents: the shape.
        siblings: how the children of a node are drawn.
    """
    token_BN = all_chains(pair.vocabulary, len(parents))
    logp_BNV, logq_BNV = pair.tree(token_BN, parents)
    logd_BNV = _sibling_laws(logq_BNV, token_BN, parents, siblings)
    weight_B = logd_BNV.double().exp().gather(-1, token_BN[..., None]).squeeze(-1).prod(-1)
    cuts, row_B = _cuts(parents), weight_B.nonzero().squeeze(1)
    row_BC, length_B = row_B.repeat(len(cuts)), torch.tensor(cuts, dtype=torch.int64).repeat_interleave(len(row_B))
    back_BC = row_BC.flip(0)
    real_BN = torch.arange(len(parents)) < length_B[:, None]
    known_BN1 = torch.nn.functional.pad(real_BN, (1, 0), value=True)[..., None]
    draft = Draft(
        torch.where(real_BN, token_BN[row_BC], token_BN[back_BC]),
        length_B,
        torch.where(real_BN[..., None], logd_BNV[row_BC], logd_BNV[back_BC]),
        torch.tensor(parents, dtype=torch.int64).expand(len(row_BC), -1),
        chosen=siblings == "top",
    )
    logp_BNV = torch.where(known_BN1, logp_BNV[row_BC], logp_BNV[back_BC])
    groups = tuple(f"{cut} nodes of {list(parents)}, {siblings} siblings" for cut in cuts)
    group_B = torch.arange(len(cuts)).repeat_interleave(len(row_B))
    return Rounds(pair, draft, logp_BNV, weight_B[row_BC], group_B, groups)


def _cuts(parents: Sequence[int]) -> list[int]:
    """How many nodes to keep: none, whole levels, all but one, all."""
    depth = depths(parents)
    levels = [node for node in range(1, len(depth)) if depth[node] > depth[node - 1]]
    return sorted({0, *levels, len(depth) - 1, len(depth)})


def joined(parts: Sequence[Rounds]) -> Rounds:
    """Rounds of one pair of laws and equally many drafted tokens as one batch, the groups one after the other."""
    starts = [sum(len(part.groups) for part in parts[:index]) for index in range(len(parts))]
    drafts = [part.draft for part in parts]
    draft = Draft(
        torch.cat([draft.token_BK for draft in drafts]),
        torch.cat([draft.length_B for draft in drafts]),
        torch.cat([draft.logq_BKV for draft in drafts]),
        torch.cat([draft.tree_BK for draft in drafts]),
        chosen=all(draft.chosen for draft in drafts),
    )
    return Rounds(
        parts[0].pair,
        draft,
        torch.cat([part.logp_BKV for part in parts]),
        torch.cat([part.weight_B for part in parts]),
        torch.cat([start + part.group_B for start, part in zip(starts, parts, strict=True)]),
        tuple(group for part in parts for group in part.groups),
    )


def _sibling_laws(logq_BNV: Tensor, token_BN: Tensor, parents: Sequence[int], siblings: Siblings) -> Tensor:
    """The law that each node is drawn from given its elder siblings, `[B, N, V]`."""
    laws = []
    for node, parent in enumerate(parents):
        elder = [other for other in range(node) if parents[other] == parent]
        taken_BV = torch.zeros(len(token_BN), logq_BNV.shape[-1], dtype=torch.bool)
        taken_BV = taken_BV.scatter(1, token_BN[:, elder], True)
        logq_BV, count = logq_BNV[:, node], list(parents).count(parent)
        laws.append(sibling_law(logq_BV, logq_BV, taken_BV, len(elder), count, siblings))
    return torch.stack(laws, 1)


# ---------------------------------------------------------------------------------------------------------------------
# The exact laws
# ---------------------------------------------------------------------------------------------------------------------


def emitted_law(verifier: Verifier, rounds: Rounds, where: str = "a pair of laws") -> Tensor:
    """The joint law of K + 1 tokens, one round's and then the target's own, float64 `[G, V^(K+1)]`.

    Args:
        verifier: see `outcomes`.
        rounds: the drafts and laws.
        where: names the setting in errors.
    """
    return emitted_under(outcomes(verifier, rounds.logp_BKV, rounds.draft, where), rounds, where)


def emitted_under(every: Iterable[Outcome], rounds: Rounds, where: str) -> Tensor:
    """`emitted_law`, from all outcomes of the rounds."""
    vocabulary, groups = rounds.pair.vocabulary, len(rounds.groups)
    code_BK1 = path_codes(rounds.draft, vocabulary)
    mass = [torch.zeros(groups, vocabulary**depth, dtype=torch.float64) for depth in range(rounds.pair.longest + 2)]
    for outcome in every:
        row_B, verdict = outcome.row_B, outcome.verdict
        check_range(verdict, rounds.draft.of_rows(row_B), vocabulary, where, row_B)
        last_B = verdict.accepted_B if verdict.node_B is None else verdict.node_B + 1
        code_B = code_BK1[row_B, last_B] * vocabulary + verdict.next_token_B
        group_B, weight_B = rounds.group_B[row_B], rounds.weight_B[row_B] * outcome.weight_B
        for depth in range(1, rounds.pair.longest + 2):
            here_B = verdict.accepted_B == depth - 1
            mass[depth].index_put_((group_B[here_B], code_B[here_B]), weight_B[here_B], accumulate=True)
    return rounds.pair.complete(tuple(mass))


def path_codes(draft: Draft, vocabulary: int) -> Tensor:
    """The codes of the prefixes after the root and each drafted token, int64 `[B, K+1]`."""
    code_BK = torch.zeros(len(draft.token_BK), draft.token_BK.shape[1] + 1, dtype=torch.int64)
    for node, (token_B, parent_B) in enumerate(zip(draft.token_BK.T, draft.tree_BK.T, strict=True)):
        code_BK[:, node + 1] = code_BK.gather(1, parent_B[:, None] + 1).squeeze(1) * vocabulary + token_B
    return code_BK


def accepted_law(verifier: Verifier, rounds: Rounds, where: str = "a pair of laws") -> Tensor:
    """P(accepted = k) of each row, k in 0..K, float64 `[B, K+1]`."""
    count_K = torch.arange(rounds.pair.longest + 1)
    law_BK = torch.zeros(len(rounds.weight_B), len(count_K), dtype=torch.float64)
    for outcome in outcomes(verifier, rounds.logp_BKV, rounds.draft, where):
        share_BK = outcome.weight_B[:, None] * (outcome.verdict.accepted_B[:, None] == count_K)
        law_BK.index_add_(0, outcome.row_B, share_BK)
    return law_BK


def reached_under(every: Iterable[Outcome], rounds: Rounds) -> Tensor:
    """P(each place is accepted), float64 `[B, K+1]`: the root, which always is, then every drafted token.

    Args:
        every: all outcomes of the rounds.
        rounds: the drafts and laws.
    """
    reached_BK1 = torch.zeros(len(rounds.weight_B), rounds.draft.token_BK.shape[1] + 1, dtype=torch.float64)
    for outcome in every:
        verdict = outcome.verdict
        node_B = verdict.accepted_B - 1 if verdict.node_B is None else verdict.node_B
        stands_BK1 = torch.nn.functional.pad(path(node_B, rounds.draft.tree_BK[outcome.row_B]), (1, 0), value=True)
        reached_BK1.index_add_(0, outcome.row_B, outcome.weight_B[:, None] * stands_BK1)
    return reached_BK1


def check_range(verdict: Verdict, draft: Draft, vocabulary: int, where: str, row_B: Tensor | None = None) -> None:
    """Refuse a verdict that no draft allows.

    Args:
        verdict: the verdict.
        draft: what was verified.
        vocabulary: V.
        where: names the setting in errors.
        row_B: the rows' numbers in errors; None counts them.

    Raises:
        ConformanceError: an accepted count or a token is out of its range, or not int64 `[B]`.
    """
    row_B = torch.arange(len(draft.length_B)) if row_B is None else row_B
    most = {"accepted_B": draft.length_B, "next_token_B": torch.full_like(draft.length_B, vocabulary - 1)}
    if verdict.node_B is not None:
        _check_node(verdict, draft, where, row_B)
    elif draft.parent_BK is not None:
        raise ConformanceError("a verdict on a tree names the last node", where, "node_B is None")
    for name, most_B in most.items():
        value_B = getattr(verdict, name)
        if value_B.dtype != torch.int64 or value_B.shape != most_B.shape:
            raise ConformanceError(f"{name} is int64 [B]", where, f"{value_B.dtype} {list(value_B.shape)}")
        wrong_B = (value_B < 0) | (value_B > most_B)
        if wrong_B.any():
            at = int(wrong_B.nonzero()[0])
            found = f"{int(value_B[at])}, possible is 0 to {int(most_B[at])}"
            raise ConformanceError(f"{name} is in its range", f"{where}, row {int(row_B[at])}", found)


def _check_node(verdict: Verdict, draft: Draft, where: str, row_B: Tensor) -> None:
    """Refuse a node that was not drafted, or at another depth than was accepted."""
    node_B, nodes = verdict.node_B, draft.token_BK.shape[1]
    assert node_B is not None
    depth_B = path(node_B, draft.tree_BK).sum(-1)
    wrong_B = (node_B < -1) | (node_B >= draft.length_B.clamp(max=nodes)) | (depth_B != verdict.accepted_B)
    if wrong_B.any():
        at = int(wrong_B.nonzero()[0])
        found = f"node {int(node_B[at])} at depth {int(depth_B[at])}, accepted {int(verdict.accepted_B[at])}"
        raise ConformanceError("node_B is a real node at depth accepted_B", f"{where}, row {int(row_B[at])}", found)


@dataclass(frozen=True)
class LawError:
    """How far a law is from the target's.

    Attributes:
        total_variation: half the sum of the absolute differences.
        largest: the largest absolute difference.
        kl: `KL(law || target)` in nats; infinite where something impossible is emitted.
    """

    total_variation: float
    largest: float
    kl: float

    @classmethod
    def between(cls, law: Tensor, target: Tensor) -> "LawError":
        """The distance of one law from another."""
        gap = (law - target).abs()
        ratio = torch.where(law > 0, law, 1.0).log() - torch.where(law > 0, target, 1.0).log()
        return cls(float(gap.sum()) / 2, float(gap.max()), float((law * ratio).sum()))


def mean_accepted(verifier: Verifier, rounds: Rounds, where: str = "a pair of laws") -> tuple[float, ...]:
    """E[accepted tokens] of each group of rounds, by exact enumeration."""
    mean_B = (accepted_law(verifier, rounds, where) * torch.arange(rounds.pair.longest + 1)).sum(-1)
    mean = torch.zeros(len(rounds.groups), dtype=torch.float64)
    return tuple(mean.index_add(0, rounds.group_B, rounds.weight_B * mean_B).tolist())


def law_error(verifier: Verifier, pair: LawPair) -> LawError:
    """How far the emitted tokens are from the target's law when K tokens are drafted, by exact enumeration.

    The joint law of K + 1 tokens: one round's, then the target's own. 0 up to rounding for a lossless verifier; the
    distance that a lossy one reports.

    Args:
        verifier: must take its randomness from `Noise.coins` and `Noise.draw` alone.
        pair: the laws.
    """
    rounds = all_rounds(pair)
    return LawError.between(emitted_law(verifier, rounds)[pair.longest], pair.target_law())
