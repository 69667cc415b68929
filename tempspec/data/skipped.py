"""Rows that cannot be used: counted by reason, left out up to a share; beyond it the first is named (floor 5)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tempspec.errors import UserError


class Unusable(ValueError):
    """Why a row cannot be used.

    Args:
        reason: the same words for every such row.
        details: what this row has, or what helps.
    """

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(f"{reason} ({details})" if details else reason)
        self.reason = reason
        self.details = details


@dataclass
class Skipped:
    """What was left out of a corpus, and why.

    Attributes:
        counts: rows by reason; a reason is a few words, the same for every such row.
        first: place and details of the first row, as `data.jsonl line 12: content is null`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def add(self, reason: str, place: str, details: str = "") -> None:
        """Count a row.

        Args:
            reason: why it cannot be used, without what only this row has.
            place: where it is, as `data.jsonl line 12`.
            details: what this row has.
        """
        self.first = self.first or f"{place}: {reason}{f' ({details})' if details else ''}"
        self.counts[reason] += 1

    def __add__(self, other: "Skipped") -> "Skipped":
        """Both, this one's rows first."""
        return Skipped(self.counts + other.counts, self.first or other.first)

    @property
    def total(self) -> int:
        """How many rows were left out."""
        return self.counts.total()

    def check(self, read: int, share: float) -> None:
        """Refuse a corpus of which too many rows were left out.

        Args:
            read: rows that were read, those left out included.
            share: the largest share of rows that may be left out, in [0, 1].

        Raises:
            UserError: more were; it names the first.
        """
        if self.total > share * read:
            raise UserError(
                f"{self.first}; {self.total} of {read} rows cannot be used ({self}), expected at most {share:.4g} of "
                "them: repair or drop them, or raise data.max_skipped"
            )

    def __str__(self) -> str:
        """The reasons with their counts, the most frequent first.

        >>> str(Skipped(Counter({"content is null": 2, "no answer": 7})))
        '7 no answer, 2 content is null'
        """
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())

    def as_dict(self) -> dict[str, int]:
        """The counts by reason."""
        return dict(self.counts)

    @classmethod
    def of(cls, counts: Mapping[str, int], first: str) -> "Skipped":
        """What `as_dict` and `first` held."""
        return cls(Counter(counts), first)
