"""Requests that wait for a slot (floor 4)."""

from collections.abc import Iterator

from tempspec.interfaces import Request

__all__ = ["Waiting"]


class Waiting:
    """An iterator of requests that may run dry and have more later, with a look at the next one.

    Args:
        requests: asked for one at a time.
    """

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests
        self._head: Request | None = None

    def filled(self) -> bool:
        """Whether a request waits; asks the iterator again where none did."""
        if self._head is None:
            self._head = next(self._requests, None)
        return self._head is not None

    @property
    def head(self) -> Request:
        """The next request, where `filled`."""
        assert self._head is not None
        return self._head

    def take(self) -> Request:
        """The next request, which waits no more."""
        request, self._head = self.head, None
        return request
