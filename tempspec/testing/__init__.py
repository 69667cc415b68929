"""The conformance kit for plugins of every family (floor 3)."""

from tempspec.testing.divergences import check_divergence
from tempspec.testing.errors import ConformanceError
from tempspec.testing.schedules import check_schedule

__all__ = ["ConformanceError", "check_divergence", "check_schedule"]
