"""A live engine that speculates, asked for the completions of some prompts: its tokens and what it counted (floor 6).

Per-request records are taken where the answers hold them. Else vLLM's counters are read between groups of requests,
each of which then counts as one observation.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any

from tempspec.cli.import_results.counters import difference, of_counters, scraped
from tempspec.cli.import_results.counts import LoggedCounts
from tempspec.cli.import_results.responses import of_responses
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.metrics.parity import Counted
from tempspec.modules.openai_client import Refused, Server, call, page
from tempspec.modules.server_kind import Kind, listed_models, recognise, refusal

__all__ = ["Answers", "LiveEngine", "written"]

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
        """The tokens that a round drafts at most."""
        return max(len(count.by_position) for _, count in self.counts)

    @property
    def own(self) -> tuple[float, float]:
        """Emitted tokens and rounds as the engine counts them itself: of the rounds that drafted."""
        rounds = sum(count.drafting for _, count in self.counts)
        return rounds + sum(sum(count.by_position) for _, count in self.counts), rounds

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
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.kind: Kind = recognise(server)
        if self.kind.form != "engine":
            raise UserError(f"{server.url} is {self.kind.name}: expected an engine that speculates, vLLM or SGLang")
        if self.kind.name == "llama.cpp":
            raise UserError(
                f"{server.url} is llama.cpp, which tells no positions: save its answers as JSON Lines and give them to "
                "`tempspec import-results`"
            )
        names = [str(entry.get("id")) for entry in listed_models(server)]
        self.model = server.model or (names[0] if len(names) == 1 else "")
        self.sglang = self.kind.name.startswith("SGLang")

    def answer(self, due: Sequence[tuple[int, Request]]) -> Answers:
        """Ask for completions.

        Args:
            due: requests of one temperature, each with its prompt's key.

        Raises:
            UserError: it refuses, cannot be reached, or does not tell what it counts.
        """
        found = Answers()
        first = self.ask(due[0][1].shortened(1))
        told = self.sglang or bool((first.get("metrics") or {}).get("speculative_decoding"))
        began = time.monotonic()
        if told:
            self._each(due, found)
        else:
            self._in_groups(due, found)
        found.seconds = time.monotonic() - began
        return found

    def tokens_of(self, body: Mapping[str, Any]) -> list[int] | None:
        """What the server's tokenizer makes of a text or of messages; None where it does not tell."""
        try:
            told = call(self.server, "/tokenize", {"model": self.model, **body}).get("tokens")
        except (Refused, UserError):
            return None
        return [int(token) for token in told] if isinstance(told, list) else None

    # -- one temperature ----------------------------------------------------------------------------------------------

    def _each(self, due: Sequence[tuple[int, Request]], found: Answers) -> None:
        """By the record of each answer."""
        for (key, request), answer in zip(due, self._ask_all([one for _, one in due]), strict=True):
            self._keep(found, request, answer)
            log = of_responses(self.server.url, [answer])
            for count in log.counts if log else ():
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
            here = sum(written(answer) for answer in answers)
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
        if not count.by_position:
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
        choice = answer if self.sglang else answer["choices"][0]
        ids = choice.get("output_ids" if self.sglang else "token_ids")
        if ids:
            found.ids[request.key] = [int(token) for token in ids]
        found.tokens += written(answer)

    # -- one request --------------------------------------------------------------------------------------------------

    def _ask_all(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        with ThreadPool(min(self.server.concurrency, len(requests))) as pool:
            return pool.map(self.ask, requests, chunksize=1)

    def ask(self, request: Request) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            UserError: it is refused, or the engine cannot be reached.
        """
        body = self._body(request)
        post = partial(call, self.server, "/generate" if self.sglang else "completions")
        try:
            return post(body)
        except Refused as error:
            raise refusal(self.server, body, error) from error

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = {
            "temperature": request.target_temperature,
            "top_p": request.top_p,
            "top_k": request.top_k or -1,
            "min_p": request.min_p,
            "repetition_penalty": 1.0,
            "ignore_eos": not request.stop_ids,
        }
        if self.sglang:
            return {
                "input_ids": list(request.prompt),
                "sampling_params": sampling | {"max_new_tokens": request.max_new_tokens},
            }
        own = {"model": self.model, "prompt": list(request.prompt), "max_tokens": request.max_new_tokens}
        return own | sampling | {"seed": request.seed & 0x7FFFFFFF, "return_token_ids": True}


def written(answer: Mapping[str, Any]) -> int:
    """Tokens of an answer."""
    usage = answer.get("usage") or answer.get("meta_info") or {}
    return int(usage.get("completion_tokens") or 0)
