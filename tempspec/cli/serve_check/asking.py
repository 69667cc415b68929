"""A live engine that speculates, asked for the completions of some prompts: its tokens and what it counted (floor 6).

Per-request records are taken where the answers hold them. Else vLLM's counters are read between groups of requests,
each of which then counts as one observation.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.pool import ThreadPool
from typing import Any

from tempspec.cli.import_results.counters import difference, of_counters, scraped
from tempspec.cli.import_results.counts import LoggedCounts
from tempspec.cli.serve_check.dialects import dialect_of
from tempspec.decoding.sweep import Sweep
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.metrics.parity import Counted, Totals
from tempspec.modules.openai_client import Refused, Server, call, page
from tempspec.modules.server_kind import Kind, listed_models, recognise, refusal

__all__ = ["Answers", "LiveEngine"]

GROUPS = 12
"""Observations that requests are put into where an engine counts for all of them together."""

SETTLING = 50
"""Times that counters are read until two are equal."""

_ALONE = "ask it alone, or start vLLM with --per-request-spec-decode-metrics summary"
_TELL = "start vLLM with --per-request-spec-decode-metrics summary, or let its /metrics be read"


@dataclass
class Answers:
    """What an engine answered at one temperature.

    Attributes:
        ids: the tokens of each request by its key; empty where the engine returns text alone.
        counts: what was counted of each request by its prompt's key, or of each group by its number.
        tokens: written.
        seconds: taken.
    """

    ids: dict[str, list[int]] = field(default_factory=dict)
    counts: list[tuple[int, LoggedCounts]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def drafted(self) -> int:
        """The tokens that a round drafts at most; 0 where the engine tells no positions."""
        return max(len(count.by_position) for _, count in self.counts)

    @property
    def own(self) -> tuple[float, float]:
        """Emitted tokens and rounds as the engine counts them itself: of the rounds that drafted."""
        rounds = sum(count.drafting for _, count in self.counts)
        return rounds + sum(sum(count.by_position) for _, count in self.counts), rounds

    def totals(self) -> list[Totals]:
        """What an engine counts that tells no positions."""
        return [Totals(key, count.rounds, count.drafted or 0.0, count.accepted or 0.0) for key, count in self.counts]

    def counted(self, longest: int) -> list[Counted]:
        """The same for a comparison.

        Args:
            longest: K, at least `drafted`.
        """
        return [
            Counted.of_reached(
                key, count.rounds, count.drafting, count.by_position + (0.0,) * (longest - len(count.by_position))
            )
            for key, count in self.counts
        ]


class LiveEngine:
    """An engine that speculates.

    Args:
        server: where it is.

    Attributes:
        model: the name that it serves the target under; empty where it lists several and none is named.
        stops: whether its texts end at an end token.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.kind: Kind = recognise(server)
        if self.kind.form != "engine":
            raise UserError(
                f"{server.url} is {self.kind.name}: expected an engine that speculates: vLLM, SGLang or llama.cpp"
            )
        names = [str(entry.get("id")) for entry in listed_models(server)]
        self.model = server.model or (names[0] if len(names) == 1 else "")
        self.dialect = dialect_of(self.kind.name)
        self.stops = True

    def take_up(self, sweep: Sweep) -> None:
        """Ask as a sweep decodes.

        Raises:
            UserError: the engine cannot.
        """
        self.stops = sweep.stop_at_eos
        self.dialect.form.body(Request((0,), 0.0), self.model, stops=self.stops)

    def answer(self, due: Sequence[tuple[int, Request]]) -> Answers:
        """Ask for completions.

        Args:
            due: requests of one temperature, each with its prompt's key.

        Raises:
            UserError: it refuses, cannot be reached, or does not tell what it counts.
        """
        found = Answers()
        first = self.ask(due[0][1].shortened(1))
        began = time.monotonic()
        if self.dialect.tells(first):
            self._each(due, found)
        else:
            self._in_groups(due, found)
        found.seconds = time.monotonic() - began
        return found

    def tokens_of(self, body: Mapping[str, Any]) -> list[int] | None:
        """What the server's tokenizer makes of a text or of messages; None where it does not tell."""
        try:
            return self.dialect.tokenized(self.server, self.model, body)
        except UserError:
            return None

    # -- one temperature ----------------------------------------------------------------------------------------------

    def _each(self, due: Sequence[tuple[int, Request]], found: Answers) -> None:
        """By the record of each answer."""
        asked = [replace(one, max_new_tokens=one.max_new_tokens + self.dialect.extra) for _, one in due]
        for (key, request), answer in zip(due, self._ask_all(asked), strict=True):
            self._keep(found, request, answer)
            for count in self.dialect.counts(self.server.url, answer):
                found.counts.append((key, self._whole(count)))

    def _in_groups(self, due: Sequence[tuple[int, Request]], found: Answers) -> None:
        """By the counters before and after each group.

        Raises:
            UserError: there are none, or others use the server.
        """
        before = self._settled()
        for number in range(min(GROUPS, len(due))):
            group = [request for _, request in due[number::GROUPS]]
            answers = self._ask_all(group)
            for request, answer in zip(group, answers, strict=True):
                self._keep(found, request, answer)
            after = self._settled()
            counters = difference(before, after)
            here = sum(self.dialect.written(answer) for answer in answers)
            if (all_written := counters.get("generation_tokens", here)) != here:
                raise UserError(
                    f"{self.server.url} wrote {all_written:g} tokens while {here} were asked for here: it is used "
                    f"by others; {_ALONE}"
                )
            if log := of_counters(counters):
                found.counts.append((number, self._whole(log.counts[0])))
            before = after

    def _settled(self) -> dict[str, float]:
        """The counters, once they stay as they are: they follow the answers by a moment.

        Raises:
            UserError: there are none, or they grow on and on.
        """
        before = self._counters()
        for _ in range(SETTLING):
            time.sleep(0.1)
            counters = self._counters()
            if counters == before:
                return counters
            before = counters
        raise UserError(f"{self.server.url} is used by others, whose tokens its counters count, too; {_ALONE}")

    def _whole(self, count: LoggedCounts) -> LoggedCounts:
        """The same.

        Raises:
            UserError: nothing is said of positions.
        """
        if self.dialect.positions and not count.by_position:
            raise UserError(f"{self.server.url} tells no acceptance by position, which is compared; {_TELL}")
        return count

    def _counters(self) -> dict[str, float]:
        try:
            counters = scraped(page(self.server, "/metrics"))
        except Refused:
            counters = {}
        if "spec_decode_num_drafts" not in counters:
            raise UserError(f"{self.server.url} does not speculate, or does not tell what it accepts; {_TELL}")
        return counters

    def _keep(self, found: Answers, request: Request, answer: Mapping[str, Any]) -> None:
        if ids := self.dialect.form.ids(answer):
            found.ids[request.key] = [int(token) for token in ids][: request.max_new_tokens]
        found.tokens += self.dialect.written(answer)

    # -- one request --------------------------------------------------------------------------------------------------

    def _ask_all(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        with ThreadPool(min(self.server.concurrency, len(requests))) as pool:
            return pool.map(self.ask, requests, chunksize=1)

    def ask(self, request: Request) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            UserError: it is refused, or the engine cannot be reached.
        """
        body = self.dialect.form.body(request, self.model, stops=self.stops)
        try:
            return call(self.server, self.dialect.form.path, body)
        except Refused as error:
            raise refusal(self.server, body, error) from error
