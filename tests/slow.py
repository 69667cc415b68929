"""Parameters of a long test: some are tried by every run, and the others by `pytest -m slow` as well."""

from collections.abc import Iterable

import pytest


def slow_but(*kept, among: Iterable):
    """All parameters, those that are not kept marked `slow`; a name that is kept and not there is an error."""
    values = list(among)
    assert not set(kept) - set(values), f"expected some of {values}, got {kept}"
    return [value if value in kept else pytest.param(value, marks=pytest.mark.slow) for value in values]
