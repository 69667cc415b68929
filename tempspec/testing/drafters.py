"""The conformance check of drafters (floor 3).

Axes: B rows, T positions, K drafted, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tempspec.core.noise import Stream, fold, gumbel, uniform
from tempspec.core.sampling import inverse_cdf
from tempspec.core.trees import ancestry
from tempspec.interfaces import Draft, DraftContext, Drafter, DraftLength
from tempspec.testing.errors import ConformanceError

__all__ = ["HashModel", "check_drafter"]

_LONGEST_TEXT = 12
_LARGEST_Z = 5.0


class HashModel:
    """A `StepModel` with a known law: the logits are a hash of the whole text so far.

    Args:
        vocabulary: V.
        seed: another seed is another model.
    """

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        self.vocabulary = vocabulary
        self.calls = 0
        self._seed = seed
        self._state_B = torch.zeros(0, dtype=torch.int64)
        self._state_BN: Tensor | None = None  # of a tree: the root's, then the nodes'

    def catch_up(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Read each row's first `length_B` tokens; logits `[B, V]`."""
        self._state_B = torch.full((len(token_BT),), self._seed, dtype=torch.int64)
        for position, token_B in enumerate(token_BT.T):
            self._state_B = torch.where(position < length_B, fold(self._state_B, token_B), self._state_B)
        return self._logits()

    def step(self, token_B: Tensor) -> Tensor:
        """Read one more token per row; logits `[B, V]`."""
        self._state_B = fold(self._state_B, token_B)
        return self._logits()

    def grow(self, token_BM: Tensor, parent_BM: Tensor) -> Tensor:
        """Read nodes of a tree after the text; logits `[B, M, V]`."""
        if self._state_BN is None:
            self._state_BN = self._state_B[:, None]
        state_BM = fold(self._state_BN.gather(1, parent_BM + 1), token_BM)
        self._state_BN = torch.cat([self._state_BN, state_BM], 1)
        self.calls += 1
        return gumbel(state_BM[..., None], torch.arange(self.vocabulary))

    def _logits(self) -> Tensor:
        self.calls += 1
        return gumbel(self._state_B[:, None], torch.arange(self.vocabulary))


class _Rule(DraftLength):
    """Stops after even tokens, or never."""

    def __init__(self, longest: int, stops: bool) -> None:
        self.longest = longest
        self.stops = stops

    def proceed(self, token_B: Tensor, logq_BV: Tensor) -> Tensor | None:
        return token_B % 2 == 1 if self.stops else None


@dataclass(frozen=True)
class _Rounds:
    """Rows to draft for, and how to ask a drafter about them.

    Attributes:
        token_BT: texts; what comes after `length_B` is arbitrary.
        length_B: their lengths.
        limit_B: what each row may draft.
        key_B: each row's noise.
        rule: the draft length.
        vocabulary: V.
    """

    token_BT: Tensor
    length_B: Tensor
    limit_B: Tensor
    key_B: Tensor
    rule: _Rule
    vocabulary: int

    def rows(self, row_B: Tensor) -> "_Rounds":
        """Some of the rows."""
        parts = {name: getattr(self, name)[row_B] for name in ("token_BT", "length_B", "limit_B", "key_B")}
        return replace(self, **parts)

    def propose(self, drafter: Drafter, model: HashModel | None) -> Draft:
        """What the drafter answers."""

        def sample(logits_BV: Tensor, offset: int) -> tuple[Tensor, Tensor]:
            logq_BV = logits_BV[:, : self.vocabulary].log_softmax(-1)
            return inverse_cdf(logq_BV.exp(), uniform(self.key_B, int(Stream.DRAFT), offset)), logq_BV

        def draw(weight_BMV: Tensor, node_M: Tensor) -> Tensor:
            return inverse_cdf(weight_BMV, uniform(self.key_B[:, None], int(Stream.DRAFT), node_M))

        return drafter.propose(
            DraftContext(
                token_BT=self.token_BT.clone(),
                length_B=self.length_B.clone(),
                limit_B=self.limit_B.clone(),
                longest=int(self.limit_B.max()),
                vocabulary=self.vocabulary,
                rule=self.rule,
                sample=sample,
                model=model,
                law=lambda logits_BMV: logits_BMV[..., : self.vocabulary].log_softmax(-1),
                draw=draw,
            )
        )


def check_drafter(drafter: Drafter, *, vocabulary: int = 5, longest: int = 4, rows: int = 4096, seed: int = 0) -> None:
    """Hold a drafter to the laws of its family.

    On random texts of lengths from 1 token up, with a model whose law is a hash of the text if it needs one:

    - the draft has `[B, K]` ids of the vocabulary, lengths in 0..limit and normalised laws `[B, K, V]`, K at most the
      longest; nothing is NaN, not even after a row's length;
    - q is the law that the tokens were sampled from: among all rows that drafted an i-th token, each id, and each
      rank, is as frequent as q says, up to chance (a drafter that drops tokens it has seen fails here);
    - equal noise gives equal drafts; nothing after a row's length is read; a row alone gets what it gets in a batch;
    - a row stops where the rule says so, after the token that the rule was shown;
    - where no row may draft, K is 0 and the model is not called;
    - a tree's parents come before their children, level by level, no deeper than the row's limit (the rule that stops a
      chain is not asked of trees).

    Args:
        drafter: the instance to check.
        vocabulary: V; small, so that texts repeat themselves.
        longest: the most tokens of a round.
        rows: B.
        seed: of texts, noise and model.

    Raises:
        ConformanceError: it breaks a law; the message says which, where and by how much.
    """
    rounds = _random_rounds(vocabulary, longest, rows, seed)
    free = _draft(drafter, rounds, seed)
    _check_record(drafter, free, rounds)
    _check_law(free)
    _check_rows(drafter, rounds, free, seed)
    if drafter.siblings is None:
        _check_rule(drafter, rounds, free, seed)
    _check_idle(drafter, rounds, seed)


def _random_rounds(vocabulary: int, longest: int, rows: int, seed: int) -> _Rounds:
    """Rows of every length and limit."""
    row_B = torch.arange(rows)
    token_BT = (uniform(seed, int(Stream.TOKEN), row_B[:, None], torch.arange(_LONGEST_TEXT)) * vocabulary).long()
    length_B, limit_B = row_B % _LONGEST_TEXT + 1, row_B // _LONGEST_TEXT % (longest + 1)
    return _Rounds(token_BT, length_B, limit_B, fold(seed, row_B), _Rule(longest, stops=False), vocabulary)


def _draft(drafter: Drafter, rounds: _Rounds, seed: int) -> Draft:
    """A draft with a fresh model, if the drafter needs one."""
    return rounds.propose(drafter, HashModel(rounds.vocabulary, seed) if _reads_model(drafter) else None)


def _reads_model(drafter: Drafter) -> bool:
    """Whether the drafter asks a model, of its own or made of the target."""
    return drafter.needs_model or drafter.target_layers is not None


def _real(draft: Draft) -> Tensor:
    """Which tokens are real, bool `[B, K]`."""
    return torch.arange(draft.token_BK.shape[1]) < draft.length_B[:, None]


def _check_record(drafter: Drafter, draft: Draft, rounds: _Rounds) -> None:
    """Shapes, types, ranges and normalisation."""
    rows, drafted = len(rounds.length_B), draft.token_BK.shape[1]
    if (draft.parent_BK is None) != (drafter.siblings is None):
        raise ConformanceError("a drafter that names its siblings drafts trees", "random texts", "parent_BK disagrees")
    for name, value, shape in (
        ("token_BK", draft.token_BK, (rows, drafted)),
        ("length_B", draft.length_B, (rows,)),
        ("parent_BK", draft.tree_BK, (rows, drafted)),
        ("logq_BKV", draft.logq_BKV, (rows, drafted, rounds.vocabulary)),
    ):
        if value.shape != shape or (name != "logq_BKV" and value.dtype != torch.int64):
            raise ConformanceError(f"{name} is {list(shape)}", "random texts", f"{value.dtype} {list(value.shape)}")
    mass_BK = draft.logq_BKV.double().exp().sum(-1)
    own_BK = draft.logq_BKV.gather(-1, draft.token_BK.clamp(0, rounds.vocabulary - 1)[..., None]).squeeze(-1)
    parent_BK, node_K = draft.tree_BK, torch.arange(drafted)
    depth_BK = ancestry(parent_BK).sum(-1)
    wrong = {
        "at most `most_nodes(longest)` are drafted": torch.tensor(
            drafted > drafter.most_nodes(rounds.rule.longest), dtype=torch.bool
        ),
        "parents are earlier nodes, or -1": (parent_BK < -1) | (parent_BK >= node_K),
        "nodes come level by level": _real(draft)[:, 1:] & (depth_BK[:, 1:] < depth_BK[:, :-1]),
        "lengths lie in 0..K": (draft.length_B < 0) | (draft.length_B > drafted),
        "no path is longer than the limit": _real(draft) & (depth_BK > rounds.limit_B[:, None]),
        "ids lie in 0..V-1, after the length too": (draft.token_BK < 0) | (draft.token_BK >= rounds.vocabulary),
        "laws are no NaN, after the length too": draft.logq_BKV.isnan(),
        "laws add up to 1": _real(draft) & ~((mass_BK - 1.0).abs() < 1e-4),
        "a drafted token has q > 0": _real(draft) & ~(own_BK > -torch.inf),
        "a draft that says `chosen` drew nothing": _real(draft) & (own_BK != 0) & draft.chosen,
        "`shape` is every row's parents": _real(draft) & (parent_BK != _shaped(draft, parent_BK)),
        "no path is longer than `deepest`": _real(draft) & (depth_BK > draft.depth),
    }
    for law, wrong_B in wrong.items():
        if wrong_B.any():
            raise ConformanceError(law, f"{int(wrong_B.sum())} places", f"the first is {wrong_B.nonzero()[0].tolist()}")


def _shaped(draft: Draft, parent_BK: Tensor) -> Tensor:
    """The parents that the draft's `shape` names; its own where it names none."""
    if draft.shape is None or len(draft.shape) != parent_BK.shape[1]:
        return parent_BK if draft.shape is None else torch.full_like(parent_BK, -2)
    return torch.tensor(draft.shape, dtype=torch.int64).expand_as(parent_BK)


def _check_law(draft: Draft) -> None:
    """Token frequencies are q's, position by position: of each id, and of the likeliest, the second likeliest, ..."""
    real_BK1 = _real(draft)[..., None]
    q_BKV = torch.where(real_BK1, draft.logq_BKV.double().exp(), 0.0)
    hit_BKV = torch.nn.functional.one_hot(draft.token_BK, q_BKV.shape[-1]) * real_BK1
    order_BKV = q_BKV.argsort(-1, descending=True)
    _check_frequencies(hit_BKV, q_BKV, "id")
    _check_frequencies(hit_BKV.gather(-1, order_BKV), q_BKV.gather(-1, order_BKV), "rank")


def _check_frequencies(hit_BKV: Tensor, q_BKV: Tensor, label: str) -> None:
    """Sums over rows of what was drawn and of its probability agree, up to chance."""
    gap_KV = (hit_BKV - q_BKV).sum(0)
    deviation_KV = (q_BKV * (1.0 - q_BKV)).clamp(min=0.0).sum(0).sqrt()
    wrong_KV = gap_KV.abs() > _LARGEST_Z * deviation_KV + 1e-3
    if wrong_KV.any():
        position, token = wrong_KV.nonzero()[0].tolist()
        gap, deviation = float(gap_KV[position, token]), float(deviation_KV[position, token])
        raise ConformanceError(
            "tokens are sampled from exactly the law that is handed on",
            f"drafted token {position + 1}, {label} {token}",
            f"drawn {gap:+.0f} times more often than q says, standard deviation {deviation:.1f}",
        )


def _check_rows(drafter: Drafter, rounds: _Rounds, free: Draft, seed: int) -> None:
    """A draft is a function of its row's text, limit and noise."""
    row_B = torch.arange(len(rounds.length_B))
    behind_BT = torch.arange(_LONGEST_TEXT) >= rounds.length_B[:, None]
    rubbish_BT = torch.where(behind_BT, (rounds.token_BT + 1) % rounds.vocabulary, rounds.token_BT)
    longer_BT = torch.nn.functional.pad(rubbish_BT, (0, 3))
    again = _draft(drafter, rounds, seed)
    _check_same("equal noise gives equal drafts", free, again, row_B)
    again = _draft(drafter, replace(rounds, token_BT=longer_BT), seed)
    _check_same("nothing after a row's length is read", free, again, row_B)
    again = _draft(drafter, rounds.rows(row_B.flip(0)), seed)
    _check_same("a row's draft does not depend on the batch", free, again, row_B.flip(0))
    for row in range(0, len(row_B), max(1, len(row_B) // 32)):
        alone = rounds.rows(row_B[row : row + 1])
        alone = replace(alone, token_BT=alone.token_BT[:, : int(alone.length_B)])
        law = "a row alone gets the draft that it gets in a batch"
        _check_same(law, free, _draft(drafter, alone, seed), row_B[row : row + 1])


def _check_same(law: str, draft: Draft, again: Draft, row_B: Tensor) -> None:
    """Refuse two drafts that differ in what is real; `again` holds the rows `row_B` of the first."""
    length_B = draft.length_B[row_B]
    differs_B = length_B != again.length_B
    drafted = min(draft.token_BK.shape[1], again.token_BK.shape[1])
    real_BK = torch.arange(drafted) < length_B[:, None]
    differs_B = differs_B | (real_BK & (draft.token_BK[row_B, :drafted] != again.token_BK[:, :drafted])).any(-1)
    differs_B = differs_B | (real_BK & (draft.tree_BK[row_B, :drafted] != again.tree_BK[:, :drafted])).any(-1)
    laws_equal_BK = (draft.logq_BKV[row_B, :drafted] == again.logq_BKV[:, :drafted]).all(-1)
    differs_B = differs_B | (real_BK & ~laws_equal_BK).any(-1)
    if differs_B.any():
        at = int(differs_B.nonzero()[0])
        first = draft.token_BK[row_B[at], : int(length_B[at])].tolist()
        second = again.token_BK[at, : int(again.length_B[at])].tolist()
        raise ConformanceError(law, f"row {int(row_B[at])}", f"tokens {first}, then {second}, or their laws differ")


def _check_rule(drafter: Drafter, rounds: _Rounds, free: Draft, seed: int) -> None:
    """With a rule that stops after even tokens, drafts are the free ones up to and with the first even token."""
    stopped = _draft(drafter, replace(rounds, rule=_Rule(rounds.rule.longest, stops=True)), seed)
    going_BK = ((free.token_BK % 2 == 1) & _real(free)).long().cumprod(-1)
    expected_B = torch.minimum(going_BK.sum(-1) + 1, free.length_B)
    wrong_B = stopped.length_B != expected_B
    if wrong_B.any():
        row = int(wrong_B.nonzero()[0])
        found = f"{int(stopped.length_B[row])} of {free.token_BK[row].tolist()} kept, expected {int(expected_B[row])}"
        raise ConformanceError("a row stops after the token that the rule stops at", f"row {row}", found)


def _check_idle(drafter: Drafter, rounds: _Rounds, seed: int) -> None:
    """No limit above 0: no draft, no call."""
    model = HashModel(rounds.vocabulary, seed)
    idle = replace(rounds, limit_B=torch.zeros_like(rounds.limit_B))
    draft = idle.propose(drafter, model if _reads_model(drafter) else None)
    if draft.token_BK.shape[1] != 0 or draft.logq_BKV.shape[1:] != (0, rounds.vocabulary) or draft.length_B.any():
        found = f"token_BK {list(draft.token_BK.shape)}, logq_BKV {list(draft.logq_BKV.shape)}"
        raise ConformanceError("where no row may draft, K is 0", "limits of 0", found)
    if model.calls:
        raise ConformanceError("where no row may draft, the model is not called", "limits of 0", f"{model.calls} calls")
