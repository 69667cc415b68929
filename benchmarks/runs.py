"""Short distillations of one pair, each measured at every temperature: what two of the studies share.

Finished runs are lines of one file, which is kept beside the scripts: a study that is stopped goes on behind them, a
part of it is a study, and with `--minutes 0` its tables are printed from the file alone. Both studies keep their runs
in the same file, so that none is done twice.
"""

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from goals import parse
from texts import Texts

TEMPERATURES = [0.0, 0.5, 1.0, 1.5, 2.0]
DRAFT_TEMPERATURES = sorted({*TEMPERATURES, 0.6, 0.7, 0.8, 0.9, 1.2, 1.8, 2.5, 3.0})
"""What a fitted draft temperature is chosen from."""
KINDS = ("fixed", "sampled")
"""Prefixes of a measurement: held-out stories at every temperature, or text that the target sampled at that one."""
SPLITS = ("as served", "fitted")
"""The draft at the target's temperature, or at the one that was best on other text."""
RESULTS = Path(__file__).parent / "results/studies.jsonl"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5% points of Student's law, by the number of seeds (Fisher and Yates 1938, table III)."""

Rows = dict[str, dict[str, list[dict]]]
"""By name and temperature: one cell a seed."""


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
        return json.dumps(asdict(self) | {"name": ""}, sort_keys=True)


def study_options(description: str, **defaults: object) -> Namespace:
    """The arguments of a study; `defaults` are options of its own with their defaults."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, default=RESULTS, help="finished runs, a line each")
    parser.add_argument("--output", type=Path, default=Path("runs/studies"), help="the texts of the runs")
    parser.add_argument("--budgets", default="400,4000", help="optimiser steps, joined by commas")
    parser.add_argument("--seeds", type=int, default=3, help="runs that differ in nothing else")
    parser.add_argument("--text", default="1", help="`fixed`, or the temperature of the target's text")
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes, and report what there is")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default)
    options = parse(parser)
    if options.assets is None and options.minutes != 0:
        parser.error("--assets FOLDER is needed: the folder with weights/ and data/")
    return options


class Study:
    """The runs of a study, done and to be done.

    Args:
        options: of the command line, as `study_options` gives them.
    """

    def __init__(self, options: Namespace) -> None:
        self.options, self.temperatures = options, [1.0] if options.quick else TEMPERATURES
        self.file = options.output / "quick.jsonl" if options.quick else options.results
        if options.quick:
            self.file.unlink(missing_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.done: dict[str, dict] = {Run(**row["run"]).key: row for row in map(json.loads, lines)}

    def finish(self, runs: list[Run]) -> None:
        """Do the runs that are not done, short ones first and seed by seed, until the time is up."""
        left = list({run.key: run for run in runs if run.key not in self.done}.values())
        left.sort(key=lambda run: (run.steps, run.seed))
        print(f"{len(left)} runs to do, {len(runs) - len(left)} done before", flush=True)
        if not left or self.options.minutes == 0:
            return
        from drafts import Distillery

        texts = Texts(self.options.output, Path(self.options.assets), self.options.quick)
        distillery = Distillery(texts, self.temperatures, DRAFT_TEMPERATURES)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        for number, run in enumerate(left, start=1):
            passed = time.monotonic() - began
            if self.options.minutes is not None and passed > 60 * self.options.minutes:
                print(f"{len(left) - number + 1} runs left out: the time is up; the same command goes on", flush=True)
                return
            row = {"run": asdict(run)} | self._measure(distillery, run)
            with self.file.open("a") as lines:
                lines.write(json.dumps(row, separators=(",", ":")) + "\n")
            self.done[run.key] = row
            shown = " ".join(f"{cell['value']:.3f}" for cell in row["as served"]["sampled"].values())
            each = (time.monotonic() - began) / number
            print(
                f"[{number}/{len(left)}] {run.name}, text {run.text}, {run.steps} steps, seed {run.seed}: {shown}; "
                f"{each:.1f} s a run",
                flush=True,
            )

    def rows(self, runs: list[Run], split: str, kind: str) -> Rows:
        """Of the runs that are done, the cells of all seeds."""
        found: Rows = {}
        for run in runs:
            if run.key in self.done:
                for temperature, cell in self.done[run.key][split][kind].items():
                    found.setdefault(run.name, {}).setdefault(temperature, []).append(cell)
        return found

    def _measure(self, distillery, run: Run) -> dict[str, dict]:
        draft = distillery.distil(run.divergence, run.temperature, run.text, run.steps, run.seed, run.conditioning)
        found: dict[str, dict] = {split: {kind: {} for kind in KINDS} for split in SPLITS}
        for kind, temperature, grids in self._grids(distillery, draft):
            fitted = DRAFT_TEMPERATURES[int(grids["fit"][:, 0].argmax())]
            for split, own in zip(SPLITS, (temperature, fitted), strict=True):
                value, low, high, _ = grids["measured"][DRAFT_TEMPERATURES.index(own)].tolist()
                cell = {"value": value, "low": low, "high": high}
                found[split][kind][f"{temperature:g}"] = {name: round(number, 5) for name, number in cell.items()}
            found["fitted"][kind][f"{temperature:g}"]["draft_temperature"] = fitted
        return found

    def _grids(self, distillery, draft) -> Iterator[tuple[str, float, dict]]:
        """By kind of prefixes and target temperature: acceptance over draft temperatures, to measure and to fit on."""
        parts = ("measured", "fit")
        fixed = {part: distillery.acceptance(draft, f"{part} fixed", self.temperatures) for part in parts}
        for index, temperature in enumerate(self.temperatures):
            yield "fixed", temperature, {part: grid[index] for part, grid in fixed.items()}
            yield (
                "sampled",
                temperature,
                {part: distillery.acceptance(draft, f"{part} {temperature:g}", [temperature])[0] for part in parts},
            )


def value(cells: list[dict]) -> float:
    """The mean over seeds."""
    return mean(cell["value"] for cell in cells)


def mean_value(row: dict[str, list[dict]]) -> float:
    """The mean acceptance over temperatures and seeds."""
    return mean(map(value, row.values()))


def difference(one: list[list[dict]], other: list[list[dict]]) -> tuple[float, float]:
    """The mean over temperatures of one row's acceptance less another's, and its 95% half-width over the seeds.

    Runs of one seed saw the same rows in the same order where their text is the same, and are measured on the same
    prefixes: differences are paired by seed (Student's t). NaN with a single seed.

    Args:
        one: for each temperature, the cells of all seeds.
        other: of the other row; seeds that only one of them has are left out.
    """
    seeds = min(len(cells) for cells in (*one, *other))
    paired = [
        mean(a[seed]["value"] - b[seed]["value"] for a, b in zip(one, other, strict=True)) for seed in range(seeds)
    ]
    half = STUDENT[seeds] * stdev(paired) / seeds**0.5 if seeds > 1 else float("nan")
    return mean(paired), half


def table(rows: Rows, *, fitted: bool = False) -> str:
    """A Markdown table: a line a name, a column a temperature.

    The sign ± has the 95% interval over prompts; a bracket the fitted draft temperature; the last columns are the
    largest difference between two seeds and the number of seeds.
    """
    if not rows:
        return "no run is done"
    temperatures = list(next(iter(rows.values())))
    lines = [
        "| run | "
        + " | ".join(f"T = {temperature}" for temperature in temperatures)
        + " | mean | seeds' range | seeds |"
    ]
    lines.append("|---" * (len(temperatures) + 4) + "|")
    for name, row in rows.items():
        shown = []
        for cells in row.values():
            half = mean(cell["high"] - cell["low"] for cell in cells) / 2
            temperature = f" ({mean(cell['draft_temperature'] for cell in cells):.2g})" if fitted else ""
            shown.append(f"{value(cells):.3f} ± {half:.3f}{temperature}")
        spread = max(
            max(cell["value"] for cell in cells) - min(cell["value"] for cell in cells) for cells in row.values()
        )
        seeds = min(map(len, row.values()))
        lines.append(f"| {name} | {' | '.join(shown)} | {mean_value(row):.3f} | {spread:.3f} | {seeds} |")
    return "\n".join(lines)
