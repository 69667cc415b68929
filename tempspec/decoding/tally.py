"""What an engine has done so far: counters that anybody may read while it runs (floor 4)."""

from dataclasses import dataclass

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Counts of rounds and tokens, unfinished requests included.

    A slot-round is one slot in one round. The *busy share* is the share of slot-rounds in which a request was decoded,
    counted until the last request has left the queue: from there on slots are empty because nothing is left.

    Attributes:
        tokens: emitted.
        tested: drafted tokens whose earlier ones of the round were all accepted.
        accepted: of these.
        busy: slot-rounds with a request.
        offered: all slot-rounds.
        queued_busy: `busy` up to the last time that a request was taken from a queue.
        queued_offered: `offered` likewise.
    """

    tokens: int = 0
    tested: int = 0
    accepted: int = 0
    busy: int = 0
    offered: int = 0
    queued_busy: int = 0
    queued_offered: int = 0
    _since_busy: int = 0
    _since_offered: int = 0

    def begin(self) -> None:
        """A run begins: what the one before did after its queue's end is not counted as queued."""
        self._since_busy = self._since_offered = 0

    def take(self) -> None:
        """A request was taken from the queue: the rounds so far had one to come."""
        self.queued_busy += self._since_busy
        self.queued_offered += self._since_offered
        self.begin()

    def round(self, busy: int, slots: int) -> None:
        """Count one round."""
        self.busy += busy
        self.offered += slots
        self._since_busy += busy
        self._since_offered += slots

    def emit(self, tokens: int, tested: int, accepted: int) -> None:
        """Count what a round gave one request."""
        self.tokens += tokens
        self.tested += tested
        self.accepted += accepted
