"""The conformance check of draft lengths (floor 3).

Axes: B rows, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tempspec.core.noise import Stream, gumbel, uniform
from tempspec.interfaces import DraftLength, LastRound
from tempspec.testing.errors import ConformanceError

__all__ = ["check_length"]


def check_length(rule: DraftLength, *, vocabulary: int = 8, rows: int = 64, seed: int = 0) -> None:
    """Hold a draft length rule to the laws of its family.

    - `longest` is an int, at least 0, and `limit` lies in 0..longest, int64 `[B]`, in a first round (-1) and after any
      other;
    - `proceed` is None always, or bool `[B]`;
    - `proceed` is that of the rule that `for_round` gives;
    - all are functions of their arguments alone, row by row: asked again, after other questions, or about one row
      without the batch they answer the same; and they write nothing to them.

    Args:
        rule: the instance to check.
        vocabulary: V of the laws it is shown.
        rows: B.
        seed: of those laws and of the rounds it is told of.

    Raises:
        ConformanceError: it breaks a law; the message says which, where and by how much.
    """
    if type(rule.longest) is not int or rule.longest < 0:
        raise ConformanceError("longest is an int, 0 or more", type(rule).__name__, f"{rule.longest!r}")
    first_B = torch.full((rows,), -1, dtype=torch.int64)
    for where, last in (
        ("a first round", (first_B, first_B, first_B, first_B + 1, first_B + 1)),
        ("a later round", _last_round(rule.longest, rows, seed)),
    ):
        limit_B = _check_function(lambda *last: rule.limit(LastRound(*last)), last, f"limit, {where}")
        if limit_B is None or limit_B.dtype != torch.int64 or limit_B.shape != (rows,):
            raise ConformanceError("limit is int64 [B]", where, _described(limit_B))
        if ((limit_B < 0) | (limit_B > rule.longest)).any():
            raise ConformanceError(f"limit lies in 0..longest = {rule.longest}", where, f"{limit_B.tolist()}")
        _check_proceed(rule, vocabulary, last, f"after {where}", seed)


def _check_proceed(rule: DraftLength, vocabulary: int, last: tuple[Tensor, ...], after: str, seed: int) -> None:
    """Ask after tokens, in a round that follows `last`."""
    rows = len(last[0])
    for law, spread in {"sharp laws": 8.0, "flat laws": 0.5}.items():
        where = f"{law} {after}"
        arguments = (*_laws(vocabulary, rows, seed, spread), *last)
        proceed_B = _check_function(partial(_proceed, rule), arguments, f"proceed, {where}")
        if proceed_B is not None and (proceed_B.dtype != torch.bool or proceed_B.shape != (rows,)):
            raise ConformanceError("proceed is bool [B], or None", where, _described(proceed_B))


def _proceed(rule: DraftLength, token_B: Tensor, logq_BV: Tensor, *last: Tensor) -> Tensor | None:
    return rule.for_round(LastRound(*last)).proceed(token_B, logq_BV)


def _last_round(longest: int, rows: int, seed: int) -> tuple[Tensor, ...]:
    """Random limits in 0..longest, no more drafted than those, no more accepted than drafted; three such rounds."""
    counts = [torch.full((rows,), longest, dtype=torch.int64)]
    for part in range(3):
        share_B = uniform(seed, int(Stream.DRAFT), part, torch.arange(rows))
        counts.append((share_B * (counts[-1] + 1)).long())
    tested_B = torch.minimum(counts[3] + 1, counts[2])
    return counts[1], counts[2], counts[3], 3 * tested_B, 3 * counts[3]


def _laws(vocabulary: int, rows: int, seed: int, spread: float) -> tuple[Tensor, Tensor]:
    """Random tokens and the log-laws that they came from."""
    row_B1 = torch.arange(rows)[:, None]
    logq_BV = (spread * gumbel(seed, row_B1, torch.arange(vocabulary))).log_softmax(-1).float()
    return (logq_BV + gumbel(seed, -1, row_B1, torch.arange(vocabulary))).argmax(-1), logq_BV


def _check_function(ask: Callable[..., Tensor | None], arguments: tuple[Tensor, ...], where: str) -> Tensor | None:
    """The answer, once it has proved to depend on nothing but each row of the arguments."""
    kept = [argument.clone() for argument in arguments]
    answer_B = ask(*arguments)
    if not all(torch.equal(before, now) for before, now in zip(kept, arguments, strict=True)):
        raise ConformanceError("nothing is written to the arguments", where, "an argument changed")
    for row in range(len(kept[0])):
        alone_B = ask(*(argument[row : row + 1] for argument in arguments))
        expected_B = None if answer_B is None else answer_B[row : row + 1]
        if not _same(alone_B, expected_B):
            law = "a row alone gets the answer that it gets in a batch"
            raise ConformanceError(law, f"{where}, row {row}", f"{expected_B}, alone {alone_B}")
    again_B = ask(*arguments)
    if not _same(again_B, answer_B):
        raise ConformanceError("equal arguments give equal answers", where, f"{answer_B}, then {again_B}")
    return answer_B


def _same(one_B: Tensor | None, other_B: Tensor | None) -> bool:
    """Whether both are None, or equal tensors."""
    return one_B is other_B if one_B is None or other_B is None else torch.equal(one_B, other_B)


def _described(value: Tensor | None) -> str:
    """Type and shape, for an error."""
    return "None" if value is None else f"{value.dtype} {list(value.shape)}"
