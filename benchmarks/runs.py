"""Short distillations of one pair, each measured at every temperature: what two of the studies share.

Finished runs are lines of one file: a study that is stopped goes on behind them, and a part of it is a study. Both
studies keep their runs in the same file by default, so that none is done twice.
"""

import json
import logging
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from goals import parse
from texts import PROMPT, RESPONSE, Texts, remembering

TEMPERATURES = [0.0, 0.5, 1.0, 1.5, 2.0]
DRAFT_TEMPERATURES = sorted({*TEMPERATURES, 0.6, 0.7, 0.8, 0.9, 1.2, 1.8, 2.5, 3.0})
"""What a fitted draft temperature is chosen from."""
BATCH, LENGTH = 12, PROMPT + RESPONSE
KINDS = ("fixed", "sampled")
"""Prefixes of a measurement: held-out stories at every temperature, or text that the target sampled at that one."""
SPLITS = ("as served", "fitted")
"""The draft at the target's temperature, or at the one that was best on other text."""


@dataclass(frozen=True)
class Run:
    """One distillation.

    Attributes:
        name: what the tables call it.
        divergence: class name and options of the divergence, as a configuration has them.
        temperature: class name and options of the schedule.
        steps: optimiser steps.
        seed: of everything.
        text: `fixed` (stories), or the temperatures that the target's own text was sampled at, joined by commas.
        conditioning: rank of a conditioned draft; 0 for an ordinary one.
    """

    name: str
    divergence: dict
    temperature: dict
    steps: int
    seed: int
    text: str
    conditioning: int = 0

    @property
    def key(self) -> str:
        """What makes two runs one, whatever they are called."""
        return json.dumps(asdict(self) | {"name": "", "batch": BATCH, "length": LENGTH}, sort_keys=True)


def plugin(module, spec: dict):
    """An instance of a built-in, from its class name and options."""
    return getattr(module, spec["class"])(**{name: value for name, value in spec.items() if name != "class"})


def study_options(description: str, **defaults: object) -> Namespace:
    """The arguments of a study; `defaults` are options of its own with their defaults."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=Path("runs/studies"), help="finished runs and their texts")
    parser.add_argument("--budgets", default="400,4000", help="optimiser steps, joined by commas")
    parser.add_argument("--seeds", type=int, default=3, help="runs that differ in nothing else")
    parser.add_argument("--text", default="1", help="`fixed`, or the temperature of the target's text")
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes, and report what there is")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default)
    options = parse(parser)
    if options.assets is None:
        parser.error("--assets FOLDER is needed: the folder with weights/ and data/")
    options.assets = Path(options.assets)
    return options


class Study:
    """The runs of a study, done and to be done.

    Args:
        options: of the command line, as `study_options` gives them.
    """

    def __init__(self, options: Namespace) -> None:
        self.folder, self.assets, self.quick = options.output, options.assets, options.quick
        self.limit = options.minutes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / ("quick.jsonl" if self.quick else "results.jsonl")
        if self.quick:
            self.file.unlink(missing_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.done: dict[str, dict] = {row["key"]: row for row in map(json.loads, lines)}
        self.texts = Texts(self.folder, self.assets, self.quick)
        self.heats = [1.0] if self.quick else TEMPERATURES
        self._target = None

    def finish(self, runs: list[Run]) -> None:
        """Do the runs that are not done, seed by seed, until the time is up."""
        left = list({run.key: run for run in runs if run.key not in self.done}.values())
        left.sort(key=lambda run: (run.steps, run.seed))
        print(f"{len(left)} runs to do, {len(runs) - len(left)} done before", flush=True)
        began = time.monotonic()
        for number, run in enumerate(left, start=1):
            passed = time.monotonic() - began
            if self.limit is not None and passed > 60 * self.limit:
                print(f"{len(left) - number + 1} runs left out: the time is up; the same command goes on", flush=True)
                return
            row = {"key": run.key} | self._measure(run)
            with self.file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            self.done[run.key] = row
            each = (time.monotonic() - began) / number
            shown = " ".join(f"{cell['value']:.3f}" for cell in row["as served"]["sampled"].values())
            print(
                f"[{number}/{len(left)}] {run.name}, text {run.text}, {run.steps} steps, seed {run.seed}: {shown}; "
                f"{each:.0f} s a run, {each * (len(left) - number) / 60:.0f} minutes left",
                flush=True,
            )

    def rows(self, runs: list[Run], split: str, kind: str) -> dict[str, dict[str, dict[str, float]]]:
        """Of the runs that are done: by name and temperature, the means over seeds and the range of the seeds."""
        found: dict[str, list[dict]] = {}
        for run in runs:
            if run.key in self.done:
                found.setdefault(run.name, []).append(self.done[run.key][split][kind])
        return {name: {heat: _mean([row[heat] for row in rows]) for heat in rows[0]} for name, rows in found.items()}

    def _measure(self, run: Run) -> dict[str, dict]:
        import lightning.pytorch as pl
        import torch

        from tempspec.data.module import TextDataModule
        from tempspec.modules.distillation import DistillationModule
        from tempspec.modules.optim import WarmupCosine
        from tempspec.plugins import divergences, schedules

        warnings.simplefilter("ignore")
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.WARNING)
        pl.seed_everything(run.seed, verbose=False)
        data = TextDataModule(
            tokenizer=self.texts.target,
            train=self.texts.training(run.text),
            validation=self.texts.measured(self.heats),
            fold_whitespace=True,
            max_length=LENGTH,
            batch_size=BATCH,
            eval_batch_size=4 * BATCH,
            seed=run.seed,
        )
        module = DistillationModule(
            self.texts.target,
            draft_layers=1,
            divergence=plugin(divergences, run.divergence),
            temperature=plugin(schedules, run.temperature),
            conditioning_rank=run.conditioning,
            chunk_tokens=0,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0),
            lr_scheduler=lambda optimizer: WarmupCosine(optimizer, warmup=20),
            validation_temperatures=DRAFT_TEMPERATURES,
            seed=run.seed,
        )
        if self._target is None:
            self._target = remembering(module.pair.target_model)
        module.pair.target_model = self._target
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        pl.Trainer(max_steps=run.steps, limit_val_batches=0, gradient_clip_val=1.0, **quiet).fit(module, data)
        pl.Trainer(**quiet).validate(module, data, verbose=False)
        grids = {name: grid.grid().acceptance for name, grid in module.grids.items()}
        return {split: {kind: dict(self._cells(grids, split, kind)) for kind in KINDS} for split in SPLITS}

    def _cells(self, grids: dict[str, dict], split: str, kind: str) -> Iterator[tuple[str, dict[str, float]]]:
        """Acceptance by target temperature on one kind of prefixes, from the grids of all validation sets."""
        for heat in self.heats:
            name = "fixed" if kind == "fixed" else f"{heat:g}"
            other, own = grids[f"fit {name}"], heat
            if split == "fitted":
                own = max(DRAFT_TEMPERATURES, key=lambda draft: other[heat, draft].value)
            found = grids[f"measured {name}"][heat, own]
            yield f"{heat:g}", {"value": found.value, "low": found.low, "high": found.high, "draft_temperature": own}


def _mean(cells: list[dict[str, float]]) -> dict[str, float]:
    """The mean of some seeds, the half-width of the mean interval over prompts, and the range of the seeds."""
    values = [cell["value"] for cell in cells]
    half = mean((cell["high"] - cell["low"]) / 2 for cell in cells)
    return {
        "value": mean(values),
        "half": half,
        "range": max(values) - min(values),
        "draft_temperature": mean(cell["draft_temperature"] for cell in cells),
        "seeds": len(cells),
    }


def table(rows: dict[str, dict[str, dict[str, float]]], *, fitted: bool = False) -> str:
    """A Markdown table: a line a name, a column a temperature.

    The sign +- has the 95% interval over prompts; a bracket the fitted draft temperature; the last columns are the
    largest difference between two seeds and the number of seeds.
    """
    if not rows:
        return "no run is done"
    heats = list(next(iter(rows.values())))
    lines = ["| run | " + " | ".join(f"T = {heat}" for heat in heats) + " | mean | seeds' range | seeds |"]
    lines.append("|---" * (len(heats) + 4) + "|")
    for name, row in rows.items():
        cells = [f"{cell['value']:.3f} ± {cell['half']:.3f}" for cell in row.values()]
        if fitted:
            cells = [
                f"{text} ({cell['draft_temperature']:.2g})" for text, cell in zip(cells, row.values(), strict=True)
            ]
        seeds, largest = min(cell["seeds"] for cell in row.values()), max(cell["range"] for cell in row.values())
        lines.append(f"| {name} | {' | '.join(cells)} | {mean_value(row):.3f} | {largest:.3f} | {seeds} |")
    return "\n".join(lines)


def mean_value(row: dict[str, dict[str, float]]) -> float:
    """The mean acceptance over the temperatures."""
    return mean(cell["value"] for cell in row.values())
