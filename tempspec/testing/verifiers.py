"""The conformance check of verifiers (floor 3).

A verifier that says it is lossless is enumerated exactly; one that couples draft and target by shared noise, which is
continuous, is sampled. Both are held to the target's joint law of a whole round, on the same pairs of laws.

Axes: B rows, K drafted, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tempspec.core.noise import fold
from tempspec.core.verification import real
from tempspec.interfaces import Draft, Verdict, Verifier
from tempspec.testing.enumeration import (
    LawError,
    Rounds,
    all_rounds,
    all_trees,
    check_range,
    emitted_under,
    joined,
    path_codes,
    reached_under,
)
from tempspec.testing.errors import ConformanceError
from tempspec.testing.laws import LawPair, law_cases
from tempspec.testing.outcomes import Outcome, outcomes
from tempspec.testing.sampling import SampledNoise, SampledRounds, chi_square, sample_rounds, sampled_law

__all__ = ["check_verifier"]

# The largest difference of two joint laws that rounding explains, by the type of the laws handed in.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}
_EXACT = {torch.float64: _TOLERANCE[torch.float64]}
# With a right verifier, one seed in this many fails a sampled check.
_SMALLEST_P_VALUE = 1e-4
_LARGEST_Z = 5.0
# Sampled rounds are dear: short drafts, and all the rows only for laws with many likely outcomes.
_SAMPLED_LONGEST = 2
# Siblings at both levels; siblings with a subtree each; many siblings, the middle one with a child.
_SHAPES = ((-1, -1, 0, 0), (-1, -1, 0, 1), (-1, -1, -1, 1))
_RICH = frozenset({"unlike laws", "near laws", "laws with zeros"})


def check_verifier(
    verifier: Verifier, *, vocabulary: int = 3, longest: int = 3, seed: int = 0, rows: int = 400_000
) -> None:
    """Hold a verifier to the laws of its family.

    On laws with and without zeros, equal, near, disjoint, sharp and one-hot, each depending on the whole prefix, with
    drafts of every length 0..longest and drafts that stop at a token:

    - if it is lossless, the emitted tokens, completed by the target, have the target's joint law: to 1e-10 by
      enumeration, or by a chi-square test of `rows` sampled rounds if it uses shared noise;
    - what it accepts is what its `expected_acceptance` and `expected_length` say, if they say anything;
    - accepted counts lie in 0..length and tokens in 0..V-1;
    - equal noise gives equal verdicts; a row alone gets the verdict that it gets in a batch; nothing is written to the
      inputs;
    - float32 and bfloat16 laws give almost the same law as float64.

    A verifier of trees (`siblings`) is held to the same on trees of several shapes, for every way to draw siblings that
    it names. One that is greedy only is checked on one-hot target laws alone. How far a lossy one
    is from the target's law, `law_error` tells.

    Args:
        verifier: the instance to check.
        vocabulary: V of the laws, at least 2; enumeration costs about V^(2 longest + 1).
        longest: the longest draft.
        seed: of the laws and of sampled noise.
        rows: sampled rounds per pair of laws, for shared noise (drafts are at most 2 tokens long there).

    Raises:
        ConformanceError: it breaks a law; the message says which, where and by how much.
    """
    for name, pair in _cases(verifier, vocabulary, longest, seed):
        rounds = all_rounds(pair)
        _check_pure(verifier, rounds, seed, name)
        if verifier.shared_noise:
            _check_sampled(verifier, pair, rows, seed, name)
            continue
        _check_expected(verifier, rounds, name, _check_enumerated(verifier, rounds, name))
        if verifier.siblings and pair.longest >= 2:
            trees = _trees(verifier, LawPair(pair.logp[:3], pair.logq[:2]))
            _check_pure(verifier, trees, seed, f"{name}, trees")
            every = _check_enumerated(verifier, trees, name, _TOLERANCE if name in _RICH else _EXACT)
            if name in _RICH:
                _check_expected(verifier, trees, f"{name}, trees", every)


def _cases(verifier: Verifier, vocabulary: int, longest: int, seed: int) -> Iterator[tuple[str, LawPair]]:
    """The pairs of laws that a verifier must pass, with their names; the last ones leave nothing to draft."""
    for name, pair in law_cases(vocabulary, longest, seed).items():
        if name.startswith("one-hot target") or not verifier.greedy_only:
            yield name, pair
            yield f"{name}, K = 0", LawPair(pair.logp[:1], ())


def _trees(verifier: Verifier, pair: LawPair) -> Rounds:
    """Trees of several shapes in one batch, drawn in every way that the verifier names."""
    ways = sorted(verifier.siblings)
    return joined([all_trees(pair, shape, siblings) for shape in _SHAPES for siblings in ways])


# ---------------------------------------------------------------------------------------------------------------------
# The emitted law
# ---------------------------------------------------------------------------------------------------------------------


def _check_enumerated(
    verifier: Verifier, rounds: Rounds, where: str, tolerances: Mapping[torch.dtype, float] = _TOLERANCE
) -> list[Outcome]:
    """The exact law of every way to draft is finite, and the target's if the verifier is lossless.

    Returns:
        All outcomes in float64.
    """
    target = rounds.pair.target_law()
    exact: list[Outcome] = []
    for dtype, tolerance in tolerances.items():
        seen, setting = _rounded(rounds, dtype), f"{where}, {dtype}"
        every = list(outcomes(verifier, seen.logp_BKV, seen.draft, setting))
        exact = every if dtype == torch.float64 else exact
        law_GD = emitted_under(every, seen, setting)
        for group, law in zip(rounds.groups, law_GD, strict=True):
            error = LawError.between(law, target)
            if not law.isfinite().all() or (verifier.lossless and error.largest > tolerance):
                raise ConformanceError(
                    "the emitted tokens, completed by the target, have the target's law",
                    f"{where}, {group}, {dtype}",
                    f"total variation {error.total_variation:.3g}, largest difference {error.largest:.3g}",
                )
    return exact


def _rounded(rounds: Rounds, dtype: torch.dtype) -> Rounds:
    """The same rounds, with the laws that the verifier sees rounded; their probabilities stay exact."""
    draft = replace(rounds.draft, logq_BKV=rounds.draft.logq_BKV.to(dtype))
    return replace(rounds, draft=draft, logp_BKV=rounds.logp_BKV.to(dtype))


def _check_sampled(verifier: Verifier, pair: LawPair, rows: int, seed: int, where: str) -> None:
    """The law of many sampled rounds, ragged, does not differ from the target's by more than chance."""
    pair = LawPair(pair.logp[: _SAMPLED_LONGEST + 1], pair.logq[:_SAMPLED_LONGEST])
    rows = rows if where in _RICH else rows // 16
    rounds = sample_rounds(verifier, pair, rows, seed=seed, ragged=True)
    check_range(rounds.verdict, rounds.draft, pair.vocabulary, where)
    test = chi_square(sampled_law(rounds), pair.target_law())
    if verifier.lossless and test.p_value < _SMALLEST_P_VALUE:
        raise ConformanceError(
            "the emitted tokens, completed by the target, have the target's law",
            f"{where}, {rows} rounds",
            f"chi-square {test.statistic:.1f} with {test.freedom} degrees of freedom, p = {test.p_value:.2g}",
        )
    _check_expected_sampled(verifier, rounds, where)


# ---------------------------------------------------------------------------------------------------------------------
# The accepted share
# ---------------------------------------------------------------------------------------------------------------------


def _expected(verifier: Verifier, logp_BKV: Tensor, draft: Draft, where: str) -> Tensor | None:
    """`expected_acceptance`, float64 `[B, K]`, after a look at its shape."""
    expected_BK = verifier.expected_acceptance(logp_BKV[:, :-1], draft)
    if expected_BK is None:
        return None
    if expected_BK.shape != draft.token_BK.shape:
        found = f"{list(expected_BK.shape)} for drafts {list(draft.token_BK.shape)}"
        raise ConformanceError("expected_acceptance is [B, K]", where, found)
    return expected_BK.double()


def _check_expected(verifier: Verifier, rounds: Rounds, where: str, every: Sequence[Outcome]) -> None:
    """What the verifier expects, if anything, is what is enumerated; see the two checks below.

    Args:
        verifier: the rule.
        rounds: the drafts and laws.
        where: names the setting in errors.
        every: all outcomes of the rounds.
    """
    expected_BK = _expected(verifier, rounds.logp_BKV, rounds.draft, where)
    length_B = verifier.expected_length(rounds.logp_BKV, rounds.draft)
    if expected_BK is None and length_B is None:
        return
    reached_BK1 = reached_under(every, rounds)
    if expected_BK is not None:
        _check_expected_acceptance(expected_BK, reached_BK1, rounds, where)
    if length_B is not None:
        _check_expected_length(length_B, reached_BK1, rounds, where)


def _check_expected_acceptance(expected_BK: Tensor, reached_BK1: Tensor, rounds: Rounds, where: str) -> None:
    """After every prefix the enumerated share of accepted tokens is the expected one."""
    draft, vocabulary = rounds.draft, rounds.pair.vocabulary
    real_BK, code_BK1 = real(draft.token_BK, draft.length_B), path_codes(draft, vocabulary)
    for place in range(draft.token_BK.shape[1]):
        child_BK = (draft.tree_BK == place - 1) & real_BK
        accepted_B = (reached_BK1[:, 1:] * child_BK).sum(-1)
        tested_B = torch.where(child_BK.any(-1), reached_BK1[:, place], 0.0)
        difference_B = rounds.weight_B * (accepted_B - tested_B * expected_BK[:, place])
        gap = torch.zeros(len(rounds.groups), vocabulary**rounds.pair.longest, dtype=torch.float64)
        gap.index_put_((rounds.group_B, code_BK1[:, place]), difference_B, accumulate=True)
        if not gap.abs().max() <= _TOLERANCE[torch.float64]:
            raise ConformanceError(
                "expected_acceptance is P(accepted | earlier ones were), after every prefix",
                f"{where}, after {place} drafted tokens" if draft.parent_BK is None else f"{where}, place {place}",
                f"off by {float(gap.abs().max()):.3g} (weighted by the prefix)",
            )


def _check_expected_length(length_B: Tensor, reached_BK1: Tensor, rounds: Rounds, where: str) -> None:
    """The expected length's mean over drafts is the enumerated one's, however the length is chosen."""
    difference_B = rounds.weight_B * (length_B.double() - reached_BK1[:, 1:].sum(-1))
    gap = torch.zeros(len(rounds.groups), dtype=torch.float64).index_add_(0, rounds.group_B, difference_B).abs().max()
    if not gap <= _TOLERANCE[torch.float64]:
        raise ConformanceError("expected_length is E[accepted]", where, f"off by {float(gap):.3g}")


def _check_expected_sampled(verifier: Verifier, rounds: SampledRounds, where: str) -> None:
    """At every position the sampled share of accepted tokens is the expected one, up to chance."""
    expected_BK = _expected(verifier, rounds.logp_BKV, rounds.draft, where)
    if expected_BK is None:
        return
    position_K, accepted_B1 = torch.arange(rounds.pair.longest), rounds.verdict.accepted_B[:, None]
    tested_BK = (position_K <= accepted_B1) & (position_K < rounds.draft.length_B[:, None])
    gap_K = torch.where(tested_BK, (position_K < accepted_B1).double() - expected_BK, 0.0).sum(0)
    variance_K = torch.where(tested_BK, expected_BK * (1.0 - expected_BK), 0.0).sum(0).clamp(min=0.0)
    # One token's worth of slack, for expectations within rounding of 0 or 1.
    if not (gap_K.abs() <= _LARGEST_Z * variance_K.sqrt() + 1.0).all():
        found = f"gaps {gap_K.tolist()} with standard deviations {variance_K.sqrt().tolist()}"
        raise ConformanceError("expected_acceptance is P(accepted | earlier ones were)", where, found)


# ---------------------------------------------------------------------------------------------------------------------
# A verdict is a function of its row
# ---------------------------------------------------------------------------------------------------------------------


def _check_pure(verifier: Verifier, rounds: Rounds, seed: int, where: str) -> None:
    """Equal noise, equal verdict: again, in a reversed batch, alone without padding; and the inputs stay untouched."""
    key_B = fold(seed, torch.arange(len(rounds.weight_B)))
    draft, logp_BKV = rounds.draft, rounds.logp_BKV
    kept = [tensor.clone() for tensor in (draft.token_BK, draft.length_B, draft.logq_BKV, logp_BKV)]
    verdict = verifier.verify(logp_BKV, draft, SampledNoise(key_B))
    check_range(verdict, draft, rounds.pair.vocabulary, where)
    for before, now in zip(kept, (draft.token_BK, draft.length_B, draft.logq_BKV, logp_BKV), strict=True):
        if not torch.equal(before, now):
            raise ConformanceError("verify writes nothing to its inputs", where, "an input changed")

    def same(law: str, row_B: Tensor, columns: int) -> None:
        parent_BK = None if draft.parent_BK is None else draft.parent_BK[row_B, :columns]
        given = draft.token_BK[row_B, :columns], draft.length_B[row_B], draft.logq_BKV[row_B, :columns], parent_BK
        part = Draft(*given, chosen=draft.chosen)
        again = verifier.verify(logp_BKV[row_B, : columns + 1], part, SampledNoise(key_B[row_B]))
        _check_same(law, verdict, again, row_B, where)

    row_B, nodes = torch.arange(len(key_B)), draft.token_BK.shape[1]
    same("equal noise gives equal verdicts (all randomness comes from the noise)", row_B, nodes)
    same("a row's verdict does not depend on the batch", row_B.flip(0), nodes)
    for row in range(0, len(key_B), max(1, len(key_B) // 16)):
        same("a row alone gets the verdict that it gets in a batch", row_B[row : row + 1], int(draft.length_B[row]))


def _check_same(law: str, verdict: Verdict, again: Verdict, row_B: Tensor, where: str) -> None:
    """Refuse two verdicts that differ in a row; `again` holds the rows `row_B` of the first batch."""
    accepted_B, next_B = verdict.accepted_B[row_B], verdict.next_token_B[row_B]
    differs_B = (accepted_B != again.accepted_B) | (next_B != again.next_token_B)
    if verdict.node_B is not None and again.node_B is not None:
        differs_B = differs_B | (verdict.node_B[row_B] != again.node_B)
    if differs_B.any():
        at = int(differs_B.nonzero()[0])
        first, second = (int(accepted_B[at]), int(next_B[at])), (int(again.accepted_B[at]), int(again.next_token_B[at]))
        raise ConformanceError(law, f"{where}, row {int(row_B[at])}", f"(accepted, next) {first}, then {second}")
