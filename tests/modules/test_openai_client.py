"""The client of servers that do not answer; `tests/cli/test_server.py` has those that do."""

import socket
import time

import pytest

from tempspec.errors import UserError
from tempspec.modules.openai_client import Server, Trouble, call


@pytest.fixture
def silent():
    """The address of a server that takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=20) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("retries", [0, 5])
def test_a_silent_server_ends_a_request_within_its_timeout(silent, retries):
    began = time.monotonic()
    with pytest.raises(UserError, match="failed 1 times, last with: timed out"):
        call(Server(silent, timeout=0.3, retries=retries), "completions", {})
    assert 0.25 < time.monotonic() - began < 1


def test_a_refusing_server_is_asked_no_longer_than_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = f"http://127.0.0.1:{gone.getsockname()[1]}"
    told = []
    trouble = Trouble(told.append)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"failed 2 times, last with: .*refused"):
        call(Server(dead, timeout=1.5), "completions", {}, trouble)  # a second between the two, and no two more
    assert 1 <= time.monotonic() - began < 1.5
    assert len(told) == 1
    assert told[0].startswith(f"{dead}: ")
    assert told[0].endswith("refused; asking again")
    assert str(trouble) == ""


def test_the_first_trouble_is_told_and_all_that_wait_counted():
    told = []
    trouble = Trouble(told.append)
    trouble.begin("HTTP 503")
    trouble.begin("HTTP 429")
    assert told == ["HTTP 503; asking again"]
    assert str(trouble) == "1 request is sent again, last after HTTP 429"
    trouble.end()
    assert str(trouble) == ""
