"""How fast an engine is with its draft and without, so many requests at a time, and what to draft then (floor 6)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool

from rich.console import Console
from rich.table import Table

from tempspec.cli.serve_check.asking import LiveEngine
from tempspec.cli.serve_check.decoded import Ours, due, rows_at
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.metrics.bootstrap import FEWEST, Sums
from tempspec.metrics.goodput import Pair, Speed, Timed, best, gains, speedup
from tempspec.metrics.parity import counted_row, tokens_per_round
from tempspec.reporting.engine_record import TOKENWISE

__all__ = ["advice", "check_in_flight", "measured", "numbers", "show_speeds", "speed_table", "speeds"]

Due = Sequence[tuple[int, Request]]
"""Requests, each with its prompt's key."""

ROUNDS_IN_FLIGHT = 3
"""How often each place of the concurrency is filled, if there are so many requests."""


def numbers(text: str) -> list[int]:
    """Several numbers of requests.

    Raises:
        UserError: something else.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--speed must be numbers of 1 or more, such as 1,4,16, got {text}")
    return [int(part) for part in parts]


def check_in_flight(ours: Ours, in_flight: Sequence[int]) -> None:
    """Refuse to have more requests in flight than there are: tokens/s would count those that are not.

    Raises:
        UserError: saying how many there are.
    """
    most = min(len(due(ours, temperature)) for temperature in ours.sweep.target_temperatures)
    if in_flight and max(in_flight) > most:
        raise UserError(
            f"--speed must be at most the {most} requests of a temperature, got {max(in_flight)}: raise --prompts or "
            "model.sweep.samples, or lower --speed"
        )


def speeds(ours: Ours, engine: LiveEngine, plain: LiveEngine | None, in_flight: Sequence[int]) -> list[Pair]:
    """Both servers' at each temperature, with so many requests in flight; one server at a time.

    Args:
        ours: what was decoded here, for the same requests.
        engine: with a draft.
        plain: without; None where there is none.
        in_flight: numbers of requests.
    """
    found: list[Pair] = []
    for temperature in sorted(ours.sweep.target_temperatures):
        requests = due(ours, temperature)
        for concurrency in in_flight:
            drafting = measured(engine, requests, concurrency, ours.drafted)
            found.append((drafting, measured(plain, requests, concurrency, 0) if plain is not None else None))
    return found


def show_speeds(pairs: Sequence[Pair], ours: Ours, verifier: str, width: int) -> None:
    """Print the table and what to draft; nothing where nothing was timed.

    Args:
        pairs: of `speeds`.
        ours: what was decoded here.
        verifier: the rule of it.
        width: columns of the table.
    """
    if pairs:
        Console(width=max(Console().width, width)).print(speed_table(pairs))
        print(
            "tokens/s of all requests in flight; the time to the first token is a request's of one token, "
            "whose prompt was read before"
        )
    for line in advice(pairs, {t: _tokens(ours, t, verifier) for t in ours.sweep.target_temperatures} if pairs else {}):
        print(line)


def _tokens(ours: Ours, temperature: float, verifier: str) -> Sums:
    """Tokens of a round that drafts 1..K; of rules that look at a whole draft, of the longest alone."""
    rows = [counted_row(row, ours.drafted) for row in rows_at(ours, "same", temperature, temperature)]
    return tokens_per_round(rows, tokenwise=verifier == TOKENWISE)


def measured(engine: LiveEngine, requests: Due, concurrency: int, drafted: int) -> Speed:
    """Time some requests, each after one of a single token, which takes the time until the first.

    Before both the prompt is read once: engines that keep prefixes would else take longer for the first of them alone.

    Args:
        engine: whom to ask.
        requests: of one temperature; at most three for each that is in flight, and at least `FEWEST`.
        concurrency: requests in flight.
        drafted: tokens that a round drafts; 0 for a server without a draft.
    """
    asked = requests[: max(ROUNDS_IN_FLIGHT * concurrency, 2 * FEWEST)]
    with ThreadPool(concurrency) as pool:
        timed = pool.map(lambda one: _timed(engine, *one, drafted > 0), asked, chunksize=1)
    return Speed(asked[0][1].target_temperature, concurrency, drafted, tuple(timed))


def _timed(engine: LiveEngine, key: int, request: Request, drafts: bool) -> Timed:
    engine.ask(request.shortened(1))  # an engine with a prefix cache reads it now, and neither time has it
    began = time.perf_counter()
    engine.ask(request.shortened(1))
    first = time.perf_counter()
    answer = engine.ask(request)
    end = time.perf_counter()
    tokens = max(engine.dialect.written(answer) - 1, 0)
    rounds = _rounds(engine, answer) if drafts else float(tokens)
    return Timed(key, first - began, max(end - first - (first - began), 0.0), rounds, tokens)


def _rounds(engine: LiveEngine, answer: dict[str, object]) -> float:
    """Target calls of an answer; 0 where it does not tell."""
    try:
        counts = engine.dialect.counts(engine.server.url, answer)
    except UserError:
        return 0.0
    return counts[0].rounds if counts else 0.0


def speed_table(pairs: Sequence[Pair]) -> Table:
    """A line for each temperature and concurrency.

    Args:
        pairs: with a draft, and without where a server without one is given.
    """
    table = Table("T", "in flight", "tokens/s", "without a draft", "speed-up", "first token", box=None, pad_edge=False)
    for drafting, plain in pairs:
        alone = "-" if plain is None else str(plain.tokens_per_second())
        times = "-" if plain is None else str(speedup(drafting, plain))
        place = (f"{drafting.temperature:g}", str(drafting.concurrency), str(drafting.tokens_per_second()))
        table.add_row(*place, alone, times, f"{drafting.first_token().point()} s")
    return table


def advice(pairs: Sequence[Pair], tokens: Mapping[float, Sums]) -> Iterator[str]:
    """How many tokens to draft at each temperature and concurrency, where both servers were timed.

    Args:
        pairs: as `speed_table` takes them.
        tokens: of a round that drafts 1..K tokens, by temperature.
    """
    for drafting, plain in pairs:
        if plain is not None and drafting.temperature in tokens:
            found = gains(tokens[drafting.temperature], drafting, plain)
            yield f"T = {drafting.temperature:g}, {drafting.concurrency} in flight: {best(found)}"
