"""The drafts of a study: how each differs from the others, and its runs (floor 6)."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Candidate", "Run"]


@dataclass
class Candidate:
    """One draft of a study.

    Args:
        labels: how it differs from the others, for the report.
        fit: distil it first; otherwise it is measured as it is.
        generation_temperatures: train it on what the target writes at these temperatures, from the study's
            `training_prompts`; by default on the experiment's `data.train`.
        training_prompts: the sources of these prompts, by their names in the study; all by default.
        options: what differs from the experiment, by the name of the flag: `{model.temperature: 0.5}`.
        measured: measure its acceptance without decoding; false where another draft of the study is the same one, and
            this one differs in how it is decoded alone.
        cached: learn from the study's `teacher` or `features`, where it has one; false for what needs the target.
    """

    labels: dict[str, str | float] = field(default_factory=dict)
    fit: bool = True
    generation_temperatures: list[float] = field(default_factory=list)
    training_prompts: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    measured: bool = True
    cached: bool = True


@dataclass(frozen=True)
class Run:
    """One draft with one seed: an ordinary run.

    Attributes:
        draft: the draft's name.
        seed: the seed.
        candidate: the draft.
    """

    draft: str
    seed: int
    candidate: Candidate

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.draft}-s{self.seed}"
