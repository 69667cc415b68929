"""A client of OpenAI-compatible servers: one prompt in, one completion out, with retries (floor 5).

Standard library only. The key is read from the environment when a request is sent and is kept nowhere; redirects are
refused, because they would carry it elsewhere.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from itertools import count
from threading import Lock, get_ident
from typing import Any, Literal
from urllib.parse import urlsplit

from tempspec.errors import UserError

__all__ = ["Form", "Refused", "Server", "Trouble", "call", "page"]

Form = Literal["engine", "transformers", "openai"]
"""How a request says top-k, min-p and stops: as vLLM and SGLang take it, as `transformers serve` does, or not."""

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Server:
    """Where the target is served, and how it is asked.

    Args:
        url: the server, such as `http://localhost:8000`.
        model: the name that it serves the target under; by default the only one it lists, or the target's own.
        concurrency: requests in flight at a time.
        timeout: seconds that one request may take, waits and repetitions included.
        retries: how often a request is sent again after a failure that may pass, after 1, 2, 4, ... seconds.
        key_variable: the environment variable with the API key, if the server wants one.
        form: how it is asked, for a server that does not say what it is, such as one with a gateway before it.
    """

    url: str
    model: str | None = None
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 5
    key_variable: str = "OPENAI_API_KEY"
    form: Form | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            ValueError: an option is out of its range, or the address holds a secret.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"server.url must be an address such as http://localhost:8000, got {self.url!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"server.url must hold no key: put it into the environment as {self.key_variable}")
        for name in ("concurrency", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"server.{name} must be more than 0, got {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"server.retries must be 0 or more, got {self.retries}")

    def address(self, path: str) -> str:
        """The full address of a path: one below `/v1`, or with a slash at its start one of the server itself.

        >>> Server("http://localhost:8000/").address("models"), Server("http://host/v1").address("/version")
        ('http://localhost:8000/v1/models', 'http://host/version')
        """
        return f"{self.url.rstrip('/').removesuffix('/v1')}{path if path.startswith('/') else f'/v1/{path}'}"


class Trouble:
    """Requests that have failed and are sent again; threads share it.

    Args:
        tell: given a line about the first of them, once.

    >>> trouble = Trouble(print)
    >>> trouble.begin("http://host: connection refused")
    http://host: connection refused; asking again
    >>> print(trouble)
    1 request is sent again, last after http://host: connection refused
    >>> trouble.end()
    >>> bool(str(trouble))
    False
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell: Callable[[str], object] | None = tell
        self._lock = Lock()
        self._waiting: set[int] = set()
        self._last = ""

    def begin(self, failure: str) -> None:
        """This thread's request has failed and will be sent again."""
        with self._lock:
            self._waiting.add(get_ident())
            self._last = failure
            tell, self._tell = self._tell, None
        if tell is not None:
            tell(f"{failure}; asking again")

    def end(self) -> None:
        """This thread's request was answered, or given up."""
        with self._lock:
            self._waiting.discard(get_ident())

    def __str__(self) -> str:
        """What is sent again, and why; empty for nothing."""
        with self._lock:
            count, last = len(self._waiting), self._last
        requests = "1 request is" if count == 1 else f"{count} requests are"
        return f"{requests} sent again, last after {last}" if count else ""


class Refused(Exception):
    """The server understood the request and will not do it.

    Args:
        status: the HTTP status.
        reason: what it says.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """A redirect is an error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def call(
    server: Server, path: str, body: Mapping[str, Any] | None = None, trouble: Trouble | None = None
) -> dict[str, Any]:
    """The JSON answer to a request.

    Args:
        server: whom to ask.
        path: as `Server.address` takes it.
        body: posted as JSON; None to get.
        trouble: told of failures after which the request is sent again.

    Raises:
        Refused: it answers that it will not.
        UserError: it cannot be reached, or fails, again and again.
    """
    try:
        return _answered(server, path, body, trouble)
    finally:
        if trouble is not None:
            trouble.end()


def _answered(server: Server, path: str, body: Mapping[str, Any] | None, trouble: Trouble | None) -> dict[str, Any]:
    """See `call`."""
    end = time.monotonic() + server.timeout
    for attempt in count():
        try:
            return _once(server, path, body, max(end - time.monotonic(), 0.001))
        except urllib.error.HTTPError as error:
            reason = _reason(error)
            if error.code not in _AGAIN:
                raise Refused(error.code, reason) from error
            failure, wait = f"HTTP {error.code}: {reason}", _retry_after(error)
        except (OSError, HTTPException, ValueError) as error:
            failure, wait = str(getattr(error, "reason", "") or error) or type(error).__name__, 0.0
        wait = min(max(2.0 ** min(attempt, 10), wait), _LONGEST_WAIT)
        if attempt == server.retries or time.monotonic() + wait >= end:
            break
        if trouble is not None:
            trouble.begin(f"{server.url}: {failure}")
        time.sleep(wait)
    raise UserError(
        f"{server.url} failed {attempt + 1} times, last with: {failure}; see that it runs, then run the same command "
        "again: it resumes where it stopped"
    )


def page(server: Server, path: str) -> str:
    """A page as text, asked for once.

    Args:
        server: whom to ask.
        path: as `Server.address` takes it.

    Raises:
        Refused: there is none.
        UserError: the server cannot be reached.
    """
    try:
        return _read(server, path, None, server.timeout)[1].decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        raise Refused(error.code, _reason(error)) from error
    except (OSError, HTTPException) as error:
        raise UserError(f"{server.url} gives no {path}: {error}; see that it runs") from error


def _read(server: Server, path: str, body: Mapping[str, Any] | None, seconds: float) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(server.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.address(path), data, headers)
    with _OPENER.open(request, timeout=seconds) as answer:
        return answer.status, answer.read()


def _once(server: Server, path: str, body: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
    status, text = _read(server, path, body, seconds)
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):  # a page of something else, which asking again does not change
        raise Refused(status, f"expected a JSON object, got {' '.join(text[:80].decode('utf-8', 'replace').split())!r}")
    return content


def _reason(error: urllib.error.HTTPError) -> str:
    """What an error's body says, on one short line."""
    try:
        text = error.read().decode("utf-8", "replace")
    except OSError:
        text = ""
    return " ".join(text.split())[:200] or str(error.reason)


def _retry_after(error: urllib.error.HTTPError) -> float:
    try:
        return float(error.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0
