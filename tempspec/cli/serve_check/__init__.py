"""`tempspec serve-check`: whether a live engine accepts what predict measures, and what it does otherwise (floor 6)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from tempspec.cli.errors import OneLineErrors
from tempspec.cli.lightning import CommandLine, run
from tempspec.cli.serve_check.asking import Answers, LiveEngine
from tempspec.cli.serve_check.verdicts import Verdict, of_drafted, of_own_count, of_text, of_tokens, verdict
from tempspec.core.acceptance import WHOLE
from tempspec.data.prompts import Prompt
from tempspec.decoding.sweep import Sweep
from tempspec.errors import UserError
from tempspec.files import write_atomically
from tempspec.interfaces import Request
from tempspec.metrics.bootstrap import FEWEST, Sums
from tempspec.metrics.parity import counted_row, figures
from tempspec.metrics.rows import DecodedRow
from tempspec.models.evaluating import evaluating
from tempspec.models.pair import Pair
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.openai_client import Server

__all__ = ["Ours", "check", "main"]

WIDTH = 100
"""Columns of the table: a narrower file or terminal would break every figure in two."""

VERIFIER = "engine"
"""The label of the verifier that is used for the engine's."""


@dataclass
class Ours:
    """What was decoded here.

    Attributes:
        pair: the models.
        sweep: temperatures and lengths.
        drafted: tokens that a round drafts at most.
        samples_draft: whether the draft is sampled from a model, at a temperature.
        prompts: of all sets, the first turns.
        rows: by the name of a hypothesis.
        folder: of this check.
    """

    pair: Pair
    sweep: Sweep
    drafted: int
    samples_draft: bool
    prompts: list[Prompt]
    rows: dict[str, list[DecodedRow]] = field(default_factory=dict)
    folder: Path = Path()


class _Decoding(CommandLine):
    """predict, in a folder of its own, on few prompts, without a report."""

    column = "same"
    most = 32
    kept: list[Ours] = []

    @property
    def folder(self) -> Path:
        """Beside those of the run's stages; its name is what records are kept by."""
        return Path(self._options.run) / "serve-check" / self.column / "predict"

    def instantiate_classes(self) -> None:
        """With no more prompts of a set than asked for."""
        super().instantiate_classes()
        sources = self.datamodule.prompt_sources
        for name, source in sources.items():
            limit = self.most if source.limit is None else min(source.limit, self.most)
            sources[name] = replace(source, limit=limit)

    def predict(self, **kwargs: Any) -> None:
        """Decode, and keep the rows."""
        self.trainer.predict(**kwargs, return_predictions=False)
        runner = self.model.runner
        rows = pq.read_table(self.folder / "predictions.parquet").to_pylist()
        wanted = set(runner.order)
        rows = [row for row in rows if row["key"] in wanted and row["turn"] == 1 and row["verifier"] == VERIFIER]
        prompts = [prompt for members in self.datamodule.prompt_sets().values() for prompt in members]
        decoded = (self.model.pair, runner.sweep, runner.length.longest, runner.needs_draft, prompts)
        ours = Ours(*decoded, folder=self.folder.parents[1])
        ours.rows[self.column] = cast(list[DecodedRow], rows)
        self.kept.append(ours)

    def after_predict(self) -> None:
        """Nothing: no figure of a draft's card is measured here."""


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
    parser.add_argument("--verifier", default="TokenwiseRejection", help="The rule that the engine verifies with.")
    own, rest = parser.parse_known_args(list(arguments[1:]))
    server = _server(own.server, own.model_name, own.concurrency)
    if own.prompts < FEWEST:
        raise UserError(f"--prompts must be {FEWEST} or more, which an interval needs, got {own.prompts}")
    engine = LiveEngine(server)
    ours = _decoded(rest, own.prompts, own.verifier)
    engine.model = engine.model or ours.pair.target
    verdicts = list(check(ours, engine))
    _show(verdicts, server.url, engine)
    write_atomically(ours.folder / "serve_check.json", _as_json(verdicts, server.url, engine))
    return 0 if _outcome(verdicts) == "agrees" else 1


def _server(url: str, model: str | None, concurrency: int) -> Server:
    try:
        return Server(url, model, concurrency, retries=2)
    except ValueError as error:
        raise UserError(str(error)) from error


def _decoded(rest: Sequence[str], prompts: int, verifier: str) -> Ours:
    """Our rows under every hypothesis that the sweep has."""
    shared = ["predict", *rest, "--model.verifiers", f"{{{VERIFIER}: {verifier}}}", "--model.sweep.timing_prompts", "0"]
    kept: list[Ours] = []

    def column(name: str, *options: str, earlier: Any = None) -> Any:
        kind = type("_Column", (_Decoding,), {"column": name, "most": prompts, "kept": kept})
        return run([*shared, *options], earlier, kind)

    first = column("same", "--model.sweep.draft_temperatures", "[same, 0.0]")
    ours = kept[0]
    if ours.sweep.truncation != WHOLE:
        options = ("--model.sweep.draft_temperatures", "same", "--model.sweep.cut_draft", "false")
        column("uncut", *options, earlier=cast(DistillationModule, first))
        ours.rows |= kept[1].rows
    return ours


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
        answers = engine.answer(_due(ours, temperature))
        if not answers.counts:
            yield Verdict(f"T = {temperature:g}", "the engine drafted nothing", False)
            continue
        if (finding := of_drafted(answers.drafted, ours.drafted)) is not None:
            yield finding
        theirs = figures(answers.counted(max(answers.drafted, ours.drafted)))
        found = verdict(temperature, theirs, _columns(ours, temperature), among, alike=alike)
        yield found
        length = theirs["block efficiency"]
        if finding := of_own_count(*answers.own, float(length.numerator_SW[0, 0] / length.denominator_SW[0, 0])):
            yield finding
        if temperature == 0:
            alike = found.agrees is not False
            yield _of_text(ours, answers)
        if answers.seconds > 0:
            yield Verdict("speed", f"T = {temperature:g}: {answers.tokens / answers.seconds:.0f} tokens/s", True)


def _due(ours: Ours, temperature: float) -> list[tuple[int, Request]]:
    """The engine's requests: those of our rows."""
    by_place = {(prompt.set, prompt.index): prompt for prompt in ours.prompts}
    found = []
    for row in _rows(ours, "same", temperature, temperature):
        prompt = by_place[row["prompt_set"], row["prompt_index"]]
        request = ours.sweep.request(
            prompt.ids, temperature, temperature, seed=row["seed"], key=row["key"], stop_ids=ours.pair.stop_ids
        )
        found.append((row["prompt_key"], request))
    return found


def _rows(ours: Ours, column: str, temperature: float, draft: float) -> list[DecodedRow]:
    pair = (temperature, draft)
    return [row for row in ours.rows[column] if (row["target_temperature"], row["draft_temperature"]) == pair]


def _columns(ours: Ours, temperature: float) -> dict[str, dict[str, Sums]]:
    """Our figures under each hypothesis that differs from `same` at this temperature."""
    rows = {"same": _rows(ours, "same", temperature, temperature)}
    if temperature > 0 and ours.samples_draft:
        rows["argmax"] = _rows(ours, "same", temperature, 0.0)
        if "uncut" in ours.rows:
            rows["uncut"] = _rows(ours, "uncut", temperature, temperature)
    return {name: figures(counted_row(row, ours.drafted) for row in members) for name, members in rows.items()}


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
    rows = [row for row in _rows(ours, "same", 0.0, 0.0) if row["key"] in answers.ids]
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
    print(_outcome(verdicts))


def _outcome(verdicts: Sequence[Verdict]) -> str:
    """What all findings come to.

    >>> [_outcome([Verdict("a", "", True), Verdict("b", "", said)]) for said in (True, False, None)]
    ['agrees', 'differs', 'undecided']
    """
    said = {finding.agrees for finding in verdicts}
    return "differs" if False in said else "undecided" if None in said else "agrees"


def _as_json(verdicts: Sequence[Verdict], url: str, engine: LiveEngine) -> str:
    findings: list[Mapping[str, Any]] = [asdict(one) for one in verdicts]
    return json.dumps({"server": url, "kind": engine.kind.name, "findings": findings}, indent=2) + "\n"
