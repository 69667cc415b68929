from unittest.mock import MagicMock

import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from tempspec.errors import UserError
from tempspec.models.hub import hub_is_silent


def raising(error):
    def ask():
        raise error

    return ask


def answer(status):
    return MagicMock(status_code=status, headers={})


@pytest.mark.parametrize("error", [OSError("no route"), OfflineModeIsEnabled("off"), TimeoutError()])
def test_no_network_is_silence(error):
    assert hub_is_silent(raising(error))


def test_an_answer_is_none_and_a_broken_hub_is():
    assert not hub_is_silent(lambda: None)
    assert not hub_is_silent(raising(RepositoryNotFoundError("no", response=answer(404))))
    assert hub_is_silent(raising(HfHubHTTPError("down", response=answer(503))))


def test_a_line_for_the_user_goes_through():
    with pytest.raises(UserError, match="its terms"):
        hub_is_silent(raising(UserError("accept its terms")))
