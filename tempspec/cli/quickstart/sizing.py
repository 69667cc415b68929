"""How much of each step fits the time, from a short measurement of the user's model (floor 6)."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tempspec.errors import UserError
from tempspec.files import write_atomically

__all__ = ["Rates", "Sizes", "fitting"]

TEMPERATURES = 4
"""Target temperatures of the packaged configuration; each is decoded before and after."""
STARTS = 4
"""Steps that load the libraries and the target."""
QUESTION, ANSWER = 130, 48
"""Tokens of a question, about, and of an answer."""
EPOCHS, BATCH = 3, 4
"""How often fit reads each answer, and how many at a time: two dozen answers give 18 optimiser steps."""
ANSWERS = 24, 2000
PROMPTS = 6, 32
"""Fewest and most of each: fewer show nothing, more are not needed."""


@dataclass(frozen=True)
class Rates:
    """What was measured: seconds.

    Attributes:
        start: to load the libraries and the target.
        read: for a token of a question.
        write: for a token of plain decoding, 16 questions together.
        draft: for a token of speculative decoding, 16 questions together.
        write_alone: for a token of plain decoding of one question.
        draft_alone: for a token of speculative decoding of one question.
        learn: for a token that fit reads.
    """

    start: float
    read: float
    write: float
    draft: float
    write_alone: float
    draft_alone: float
    learn: float

    def answer(self) -> float:
        """Seconds for an answer to be written and learnt from, `EPOCHS` times."""
        return QUESTION * self.read + ANSWER * self.write + EPOCHS * (QUESTION + ANSWER) * self.learn

    def prompt(self) -> float:
        """Seconds for a held-out question: in a batch and, to be timed, plainly and speculatively on its own."""
        once = 3 * QUESTION * self.read + ANSWER * (self.draft + self.write_alone + self.draft_alone)
        return 2 * TEMPERATURES * once


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        answers: questions that the target answers, and that fit learns from.
        prompts: held-out questions that are decoded and timed, at each temperature, before and after.
        seconds: what all steps take, estimated.
    """

    answers: int
    prompts: int
    seconds: float

    def said(self, minutes: float) -> str:
        """One sentence for the screen, two where it takes longer than was asked for.

        >>> Sizes(64, 8, 900.0).said(15)
        'about 15 minutes for 64 answers to learn from and 8 questions to decode'
        >>> print(Sizes(24, 6, 900.0).said(5))
        about 15 minutes for 24 answers to learn from and 6 questions to decode
            --minutes 5 is too short here: fewer show nothing. Ctrl-C stops; the same command resumes
        """
        amount = f"{self.answers} answers to learn from and {self.prompts} questions to decode"
        said = f"about {math.ceil(self.seconds / 60)} minutes for {amount}"
        if self.seconds <= 75 * minutes:
            return said
        short = f"--minutes {minutes:g} is too short here: fewer show nothing. Ctrl-C stops; the same command resumes"
        return f"{said}\n    {short}"

    def write(self, path: Path, target: str, minutes: float) -> None:
        """Keep them for the next call, which resumes what this one began."""
        write_atomically(path, json.dumps({"target": target, "minutes": minutes} | asdict(self)))

    @classmethod
    def read(cls, path: Path, target: str, minutes: float) -> "Sizes | None":
        """What was kept for this target and time, if anything.

        Raises:
            UserError: the folder is another target's, whose results would make room.
        """
        if not path.exists():
            return None
        kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        held = kept.pop("target"), kept.pop("minutes")
        if held[0] != target:
            raise UserError(f"{path.parent} holds what was done with {held[0]}, got {target}: choose another --output")
        return cls(**kept) if held[1] == minutes else None


def fitting(rates: Rates, minutes: float) -> Sizes:
    """As many answers and questions as fit the time, about half of it for each.

    Args:
        rates: of the user's model.
        minutes: about how long all steps may take.

    >>> rates = Rates(start=10, read=0.001, write=0.01, draft=0.02, write_alone=0.05, draft_alone=0.05, learn=0.005)
    >>> fitting(rates, 10), fitting(rates, 1).seconds > 60
    (Sizes(answers=80, prompts=6, seconds=597.6), True)
    """
    free = 60 * minutes - STARTS * rates.start
    prompts = _between(free / 2 / rates.prompt(), PROMPTS)
    answers = _between((free - prompts * rates.prompt()) / rates.answer(), ANSWERS)
    return Sizes(answers, prompts, STARTS * rates.start + prompts * rates.prompt() + answers * rates.answer())


def _between(number: float, ends: tuple[int, int]) -> int:
    return int(min(max(number, ends[0]), ends[1]))
