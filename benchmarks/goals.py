"""What every benchmark prints last: one line a goal, and exit code 1 where one falls short."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Goal:
    """One claim and what was measured.

    Attributes:
        name: what is claimed.
        measured: the number.
        low: the goal's lower end, None for none.
        high: the goal's upper end, None for none.
        digits: digits behind the point when printed.
    """

    name: str
    measured: float
    low: float | None = None
    high: float | None = None
    digits: int = 3

    @property
    def met(self) -> bool:
        """Whether the number lies in the goal; NaN never does."""
        above = self.low is None or self.measured >= self.low
        return above and (self.high is None or self.measured <= self.high)

    def __str__(self) -> str:
        """One line."""
        pairs = ((">=", self.low), ("<=", self.high))
        ends = [f"{sign} {end:g}" for sign, end in pairs if end is not None]
        verdict = "met" if self.met else "SHORT"
        return f"{self.name}: measured {self.measured:.{self.digits}f}, goal {' and '.join(ends)}: {verdict}"


def finish(goals: list[Goal]) -> None:
    """Print all goals and leave with 0 where all are met, else 1."""
    print()
    for goal in goals:
        print(goal)
    sys.exit(0 if all(goal.met for goal in goals) else 1)


def parse(parser: ArgumentParser, assets: str = "a folder with weights/ and data/") -> Namespace:
    """Arguments of a benchmark: its own, `--quick` and `--assets`.

    Args:
        parser: with its own.
        assets: what `--assets` names.
    """
    parser.add_argument("--quick", action="store_true", help="under a minute, and therefore rough")
    parser.add_argument(
        "--assets",
        type=Path,
        default=os.environ.get("TEMPSPEC_ASSETS"),
        help=f"{assets} (or the environment variable TEMPSPEC_ASSETS)",
    )
    return parser.parse_args()
