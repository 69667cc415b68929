from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

from tempspec.models.hub import ask_hub, hub_is_silent


def raising(error):
    def ask():
        raise error

    return ask


ANSWER = MagicMock(status_code=404, headers={})


def test_an_answer_is_passed_on():
    info = SimpleNamespace(sha="abc")
    assert ask_hub(lambda: info) is info
    assert not hub_is_silent(lambda: info)


@pytest.mark.parametrize("error", [OSError("no route"), OfflineModeIsEnabled("off"), TimeoutError()])
def test_no_network_is_silence(error):
    assert hub_is_silent(raising(error))


@pytest.mark.parametrize("kind", [RepositoryNotFoundError, GatedRepoError])
def test_a_refusal_of_the_name_is_an_answer(kind):
    with pytest.raises(kind):
        hub_is_silent(raising(kind("no", response=ANSWER)))
    with pytest.raises(HFValidationError):
        hub_is_silent(raising(HFValidationError("no")))
