import warnings

import pytest

from tempspec import interfaces


def test_the_former_name_of_a_drafters_context_warns_once(monkeypatch):
    monkeypatch.delitem(vars(interfaces), "DraftTurn", raising=False)
    with pytest.warns(FutureWarning, match="DraftTurn is called DraftContext now"):
        former = interfaces.DraftTurn
    with warnings.catch_warnings(action="error"):
        assert interfaces.DraftTurn is former is interfaces.DraftContext
    monkeypatch.delitem(vars(interfaces), "DraftTurn")


def test_a_name_that_never_was_is_none():
    with pytest.raises(AttributeError, match="has no attribute 'DraftTurns'"):
        _ = interfaces.DraftTurns
