"""`tempspec serve-check`: whether a live engine accepts what predict measures, and what it does otherwise (floor 6)."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tempspec.cli.errors import OneLineErrors
from tempspec.cli.serve_check.asking import Answers, LiveEngine
from tempspec.cli.serve_check.decoded import Ours, decoded, due, rows_at
from tempspec.cli.serve_check.speed import check_in_flight, numbers, show_speeds, speeds
from tempspec.cli.serve_check.verdicts import (
    Verdict,
    of_drafted,
    of_mean_drafted,
    of_own_count,
    of_text,
    of_tokens,
    verdict,
)
from tempspec.errors import UserError
from tempspec.files import write_atomically
from tempspec.metrics.bootstrap import FEWEST, Sums
from tempspec.metrics.goodput import Pair
from tempspec.metrics.parity import counted_row, figures, mean_drafted, total_figures, total_row
from tempspec.metrics.rows import DecodedRow
from tempspec.models.evaluating import evaluating
from tempspec.modules.openai_client import Server

__all__ = ["check", "main"]

OfRows = Callable[[Iterable[DecodedRow]], dict[str, Sums]]
"""Figures of decoded rows."""

WIDTH = 100
"""Columns of the table: a narrower file or terminal would break every figure in two."""


def main(arguments: Sequence[str]) -> int:
    """Decode here, ask the engine, and print what agrees.

    Args:
        arguments: `serve-check`, its options, and those of predict.

    Returns:
        0 where everything agrees, else 1: something differs, or cannot be told.

    Raises:
        UserError: a wrong option, a server that cannot be asked, or too few prompts.
    """
    parser = OneLineErrors(
        prog="tempspec serve-check", description="Whether a live engine accepts what predict measures."
    )
    parser.add_argument("--server", required=True, help="The engine's address; all other options are those of predict.")
    parser.add_argument("--model_name", help="The name that it serves the target under, if it lists several.")
    parser.add_argument("--concurrency", type=int, default=4, help="Requests in flight at a time.")
    parser.add_argument("--prompts", type=int, default=32, help="Prompts of each set, at most.")
    parser.add_argument("--plain", help="The address of the same engine without a draft, for speeds.")
    parser.add_argument("--speed", help="Time so many requests in flight: numbers, such as 1,4,16.")
    parser.add_argument("--verifier", default="TokenwiseRejection", help="The rule that the engine verifies with.")
    own, rest = parser.parse_known_args(list(arguments[1:]))
    server = _server(own.server, own.model_name, own.concurrency)
    if own.prompts < FEWEST:
        raise UserError(f"--prompts must be {FEWEST} or more, which an interval needs, got {own.prompts}")
    in_flight = numbers(own.speed or (str(own.concurrency) if own.plain else ""))
    engine = LiveEngine(server)
    plain = LiveEngine(_server(own.plain, own.model_name, own.concurrency)) if own.plain else None
    ours = decoded(rest, own.prompts, own.verifier, [engine.take_up])
    check_in_flight(ours, in_flight)
    for one in (engine, plain):
        if one is not None:
            one.model = one.model or ours.pair.target
            one.take_up(ours.sweep)
    verdicts = list(check(ours, engine))
    _show(verdicts, server.url, engine)
    alike = not any(finding.about == "length" for finding in verdicts)  # else the costs say nothing of our length
    pairs = speeds(ours, engine, plain, in_flight) if alike else []
    show_speeds(pairs, ours, own.verifier, WIDTH)
    write_atomically(ours.folder / "serve_check.json", _as_json(verdicts, engine, pairs, ours.measured))
    print(_outcome(verdicts))
    return 0 if _outcome(verdicts) == "agrees" else 1


def _server(url: str, model: str | None, concurrency: int) -> Server:
    try:
        return Server(url, model, concurrency, retries=2)
    except ValueError as error:
        raise UserError(str(error)) from error


def check(ours: Ours, engine: LiveEngine) -> Iterator[Verdict]:
    """Everything that is compared, one finding at a time.

    Raises:
        UserError: the engine cannot be asked, or too few prompts are there.
    """
    if len(ours.prompts) < FEWEST:
        raise UserError(f"expected {FEWEST} prompts or more, which an interval needs, got {len(ours.prompts)}")
    yield from _of_tokens(ours, engine)
    temperatures, alike = sorted(ours.sweep.target_temperatures), True
    among = (ours.drafted + 2) * len(temperatures)
    for temperature in temperatures:
        answers = engine.answer(due(ours, temperature))
        if not any(count.drafted or count.by_position for _, count in answers.counts):
            yield Verdict(f"T = {temperature:g}", "the engine drafted nothing", False)
            continue
        theirs, of_rows = _theirs(answers, ours.drafted, engine.dialect.positions)
        columns, only = _columns(ours, temperature, of_rows), engine.dialect.only
        if only is not None:
            columns.pop("sampled", None)  # nothing that it could be
        found = verdict(temperature, theirs, columns, among, alike=alike, only=only)
        yield from _of_counts(answers, theirs, ours, temperature)
        yield found
        if temperature == 0:
            alike = found.agrees is not False
            yield _of_text(ours, answers)
        if answers.seconds > 0:
            yield Verdict("speed", f"T = {temperature:g}: {answers.tokens / answers.seconds:.0f} tokens/s", True)


def _theirs(answers: Answers, drafted: int, positions: bool) -> tuple[dict[str, Sums], OfRows]:
    """An engine's figures, and what computes the same ones from our rows."""
    if not positions:
        return total_figures(answers.totals()), lambda rows: total_figures(map(total_row, rows))
    theirs = figures(answers.counted(max(answers.drafted, drafted)))
    return theirs, lambda rows: figures(counted_row(row, drafted) for row in rows)


def _of_counts(answers: Answers, theirs: Mapping[str, Sums], ours: Ours, temperature: float) -> Iterator[Verdict]:
    """How many tokens are drafted per round, and of which rounds the engine's own mean is."""
    if "draft acceptance" in theirs:
        rows = rows_at(ours, "same", temperature, temperature)
        found = [of_mean_drafted(mean_drafted(answers.totals()), mean_drafted(map(total_row, rows)), ours.drafted)]
    else:
        own = of_own_count(*answers.own, _value(theirs["block efficiency"]))
        found = [of_drafted(answers.drafted, ours.drafted), own]
    yield from (one for one in found if one is not None)


def _value(sums: Sums) -> float:
    return float(sums.numerator_SW[0, 0] / sums.denominator_SW[0, 0])


def _columns(ours: Ours, temperature: float, of_rows: OfRows) -> dict[str, dict[str, Sums]]:
    """Our figures under each hypothesis that differs from `same`, what the sweep measures, at this temperature."""
    rows = {"same": rows_at(ours, "same", temperature, temperature)}
    if temperature > 0 and ours.argmax:
        rows = {"same": rows_at(ours, "same", temperature, 0.0), "sampled": rows["same"]}
    elif temperature > 0 and ours.samples_draft:
        rows["argmax"] = rows_at(ours, "same", temperature, 0.0)
        if "uncut" in ours.rows:
            rows["uncut"] = rows_at(ours, "uncut", temperature, temperature)
    return {name: of_rows(members) for name, members in rows.items()}


def _of_tokens(ours: Ours, engine: LiveEngine) -> Iterator[Verdict]:
    """The tokenizer by a prompt's text, the chat template by a question."""
    tokenizer, first = ours.pair.tokenizer, ours.prompts[0]
    plain = of_tokens("tokenizer", engine.tokens_of({"prompt": first.text}), tokenizer(first.text)["input_ids"])
    asked = next((prompt for prompt in ours.prompts if prompt.questions), None)
    chat = None
    if asked is not None and tokenizer.chat_template:
        messages = [{"role": "user", "content": asked.questions[0]}]
        chat = of_tokens("chat template", engine.tokens_of({"messages": messages}), asked.ids)
    yield from (one for one in (plain, chat) if one is not None)


def _of_text(ours: Ours, answers: Answers) -> Verdict:
    rows = [row for row in rows_at(ours, "same", 0.0, 0.0) if row["key"] in answers.ids]
    prompts = {(prompt.set, prompt.index): prompt.ids for prompt in ours.prompts}
    pairs = [(answers.ids[row["key"]], row["tokens"]) for row in rows]

    @torch.inference_mode()
    def gap(number: int, place: int) -> float:
        (theirs, mine), row = pairs[number], rows[number]
        if place >= min(len(theirs), len(mine)):
            return float("inf")
        target = ours.pair.target_model
        ids = [*prompts[row["prompt_set"], row["prompt_index"]], *mine[:place]]
        text = torch.tensor([ids], dtype=torch.int64, device=target.device)
        with evaluating(target):
            logp_V = target(input_ids=text, use_cache=False).logits[0, -1].double().log_softmax(-1)
        return float(logp_V[mine[place]] - logp_V[theirs[place]])

    return of_text(pairs, gap)


# -- what is shown -----------------------------------------------------------------------------------------------------


def _show(verdicts: Sequence[Verdict], url: str, engine: LiveEngine) -> None:
    """One table of figures, and a line for each finding."""
    table = Table("T", "figure", "engine", "ours", "difference", box=None, pad_edge=False)
    for finding in verdicts:
        for line in finding.lines:
            table.add_row(finding.about, line.name, str(line.theirs), str(line.ours), f"{line.difference:+}")
    Console(width=max(Console().width, WIDTH)).print(table)
    print(f"{url}: {engine.kind.name}; 95% intervals over prompts, the verdicts' hold for all lines at once")
    for finding in verdicts:
        print(f"{finding.about}: {finding.says}")


def _outcome(verdicts: Sequence[Verdict]) -> str:
    """What all findings come to.

    >>> [_outcome([Verdict("a", "", True), Verdict("b", "", said)]) for said in (True, False, None)]
    ['agrees', 'differs', 'undecided']
    """
    said = {finding.agrees for finding in verdicts}
    return "differs" if False in said else "undecided" if None in said else "agrees"


def _as_json(
    verdicts: Sequence[Verdict],
    engine: LiveEngine,
    pairs: Sequence[Pair],
    measured: Mapping[str, str],
) -> str:
    findings: list[Mapping[str, Any]] = [asdict(one) for one in verdicts]
    timed = [one.to_dict() for pair in pairs for one in pair if one is not None]
    said: dict[str, Any] = {"server": engine.server.url, "kind": engine.kind.name, "measured": dict(measured)}
    said |= {"findings": findings, "speeds": timed}
    return json.dumps(said, indent=2) + "\n"
