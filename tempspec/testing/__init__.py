"""The conformance kit for plugins of every family (floor 3)."""

from tempspec.testing.divergences import check_divergence
from tempspec.testing.drafters import check_drafter
from tempspec.testing.enumeration import LawError, law_error
from tempspec.testing.errors import ConformanceError
from tempspec.testing.heads import check_head
from tempspec.testing.laws import LawPair
from tempspec.testing.lengths import check_length
from tempspec.testing.schedules import check_schedule
from tempspec.testing.verifiers import check_verifier

__all__ = [
    "ConformanceError",
    "LawError",
    "LawPair",
    "check_divergence",
    "check_drafter",
    "check_head",
    "check_length",
    "check_schedule",
    "check_verifier",
    "law_error",
]
