"""What serve-check decodes here: the prompts of a run under every hypothesis that its sweep has (floor 6)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pyarrow.parquet as pq

from tempspec.cli.lightning import CommandLine, run
from tempspec.core.acceptance import WHOLE
from tempspec.data.prompts import Prompt
from tempspec.decoding.sweep import Sweep
from tempspec.interfaces import Request
from tempspec.metrics.rows import DecodedRow
from tempspec.models.pair import Pair
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.predict.identity import draft_identity

__all__ = ["Ours", "decoded", "due", "rows_at"]

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
        argmax: whether the configuration measures drafts by argmax and no other.
        prompts: of all sets, the first turns.
        rows: by the name of a hypothesis.
        folder: of this check.
        measured: which draft it is, as predict says it.
    """

    pair: Pair
    sweep: Sweep
    drafted: int
    samples_draft: bool
    argmax: bool
    prompts: list[Prompt]
    rows: dict[str, list[DecodedRow]] = field(default_factory=dict)
    folder: Path = Path()
    measured: Mapping[str, str] = field(default_factory=dict)


class _Decoding(CommandLine):
    """predict, in a folder of its own, on few prompts, without a report."""

    column = "same"
    most = 32
    drafts: ClassVar[Sequence[str | float]] = ("same", 0.0)
    cut: ClassVar[bool | None] = None
    argmax = False
    checks: ClassVar[Sequence[Callable[[Sweep], None]]] = ()
    kept: list[Ours] = []

    @property
    def folder(self) -> Path:
        """Beside those of the run's stages; its name is what records are kept by."""
        return Path(self._options.run) / "serve-check" / self.column / "predict"

    def before_instantiate_classes(self) -> None:
        """With the drafts of this column."""
        super().before_instantiate_classes()
        sweep = self._options.model.sweep
        asked = sweep.draft_temperatures
        self.argmax = all(one == 0 for one in (asked if isinstance(asked, list) else [asked]))
        sweep.draft_temperatures = list(self.drafts)
        sweep.cut_draft = sweep.cut_draft if self.cut is None else self.cut

    def instantiate_classes(self) -> None:
        """With no more prompts of a set than asked for."""
        super().instantiate_classes()
        for check in self.checks:
            check(self.model.runner.sweep)
        sources = self.datamodule.prompt_sources
        for name, source in sources.items():
            limit = self.most if source.limit is None else min(source.limit, self.most)
            sources[name] = replace(source, limit=limit)

    def predict(self, **kwargs: Any) -> None:
        """Decode what predict has not decoded in this run, and keep the rows."""
        self.model.runner.beside = Path(self._options.run) / "predict"
        self.trainer.predict(**kwargs, return_predictions=False)
        runner = self.model.runner
        rows = pq.read_table(self.folder / "predictions.parquet").to_pylist()
        wanted = set(runner.order)
        rows = [row for row in rows if row["key"] in wanted and row["turn"] == 1 and row["verifier"] == VERIFIER]
        prompts = [prompt for members in self.datamodule.prompt_sets().values() for prompt in members]
        parts = (self.model.pair, runner.sweep, runner.length.longest, runner.needs_draft, self.argmax, prompts)
        path = self.trainer.ckpt_path
        measured = draft_identity(self.model.pair, str(path) if path else None, used=runner.needs_draft)
        ours = Ours(*parts, folder=self.folder.parents[1], measured=measured)
        ours.rows[self.column] = cast(list[DecodedRow], rows)
        self.kept.append(ours)

    def after_predict(self) -> None:
        """Nothing: no figure of a draft's card is measured here."""


def decoded(rest: Sequence[str], prompts: int, verifier: str, checks: Sequence[Callable[[Sweep], None]] = ()) -> Ours:
    """Our rows under every hypothesis that the sweep has.

    Args:
        rest: options of predict.
        prompts: of each set, at most.
        verifier: the rule that the engine verifies with.
        checks: refuse a sweep before anything is decoded.
    """
    shared = ["predict", *rest, "--model.verifiers", f"{{{VERIFIER}: {verifier}}}", "--model.sweep.timing_prompts", "0"]
    kept: list[Ours] = []

    def column(name: str, earlier: Any = None, **own: Any) -> Any:
        kind = type("_Column", (_Decoding,), {"column": name, "most": prompts, "kept": kept, "checks": checks} | own)
        return run(shared, earlier, kind)

    first = column("same")
    ours = kept[0]
    if ours.sweep.truncation != WHOLE and not ours.argmax:
        column("uncut", cast(DistillationModule, first), drafts=("same",), cut=False)
        ours.rows |= kept[1].rows
    return ours


def due(ours: Ours, temperature: float) -> list[tuple[int, Request]]:
    """The engine's requests: those of our rows."""
    by_place = {(prompt.set, prompt.index): prompt for prompt in ours.prompts}
    found = []
    for row in rows_at(ours, "same", temperature, temperature):
        prompt = by_place[row["prompt_set"], row["prompt_index"]]
        request = ours.sweep.request(
            prompt.ids, temperature, temperature, seed=row["seed"], key=row["key"], stop_ids=ours.pair.stop_ids
        )
        found.append((row["prompt_key"], request))
    return found


def rows_at(ours: Ours, column: str, temperature: float, draft: float) -> list[DecodedRow]:
    """Our rows of a hypothesis at a pair of temperatures."""
    pair = (temperature, draft)
    return [row for row in ours.rows[column] if (row["target_temperature"], row["draft_temperature"]) == pair]
