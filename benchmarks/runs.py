"""Short distillations of one pair, each measured at every temperature: what two of the studies share.

Finished runs are lines of one file: a study that is stopped goes on behind them, and a part of it is a study.
"""

import json
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import yaml

TEMPERATURES = [0.0, 0.5, 1.0, 1.5, 2.0]
TRAINING = 3800
"""Stories from the first on that runs may train on; those behind them are held out."""


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
        """What makes two runs one."""
        return json.dumps(asdict(self), sort_keys=True)


def plugin(module, spec: dict):
    """An instance of a built-in, from its class name and options."""
    return getattr(module, spec["class"])(**{name: value for name, value in spec.items() if name != "class"})


class Study:
    """The runs of a study, done and to be done.

    Args:
        folder: where results and generated text are kept.
        assets: the folder with weights/ and data/.
        quick: little data and few steps.
    """

    def __init__(self, folder: Path, assets: Path, quick: bool) -> None:
        self.folder, self.assets, self.quick = folder, assets, quick
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / ("quick.jsonl" if quick else "results.jsonl")
        if quick:
            self.file.unlink(missing_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.done: dict[str, dict] = {row["key"]: row for row in map(json.loads, lines)}

    def result(self, run: Run) -> dict:
        """The acceptance of a run by temperature, measured now or before."""
        if run.key not in self.done:
            row = {"key": run.key, "acceptance": self._measure(run)}
            with self.file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            self.done[run.key] = row
            shown = {heat: round(cell["value"], 3) for heat, cell in row["acceptance"].items()}
            print(f"{run.name}, text {run.text}, {run.steps} steps, seed {run.seed}: {shown}", flush=True)
        return self.done[run.key]["acceptance"]

    def _measure(self, run: Run) -> dict[str, dict[str, float]]:
        import lightning.pytorch as pl
        import torch

        from tempspec.data.module import TextDataModule
        from tempspec.data.sources import Source
        from tempspec.modules.distillation import DistillationModule
        from tempspec.modules.optim import WarmupCosine
        from tempspec.plugins import divergences, schedules

        warnings.simplefilter("ignore")
        pl.seed_everything(run.seed, verbose=False)
        stories = self.assets / "data/tinystories.jsonl"
        data = TextDataModule(
            tokenizer=str(self.assets / "weights/babyllama-target"),
            train=Source(str(stories), limit=TRAINING)
            if run.text == "fixed"
            else Source(str(self._generated(run.text))),
            validation={"stories": Source(str(self._held_out(stories)))},
            fold_whitespace=True,
            max_length=128,
            batch_size=32,
            seed=run.seed,
        )
        module = DistillationModule(
            str(self.assets / "weights/babyllama-target"),
            draft_layers=1,
            divergence=plugin(divergences, run.divergence),
            temperature=plugin(schedules, run.temperature),
            conditioning_rank=run.conditioning,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0),
            lr_scheduler=lambda optimizer: WarmupCosine(optimizer, warmup=20),
            validation_temperatures=TEMPERATURES,
            seed=run.seed,
        )
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        pl.Trainer(max_steps=run.steps, limit_val_batches=0, gradient_clip_val=1.0, **quiet).fit(module, data)
        pl.Trainer(**quiet).validate(module, data, verbose=False)
        found = module.grids["stories"].grid().acceptance
        return {f"{heat:g}": _estimate(found[heat, heat]) for heat in TEMPERATURES}

    def _held_out(self, stories: Path) -> Path:
        """The stories that no run trains on."""
        file = self.folder / "held_out.jsonl"
        lines = stories.read_text().splitlines()
        file.write_text("\n".join(lines[TRAINING:][: 20 if self.quick else 100]) + "\n")
        return file

    def _generated(self, temperatures: str) -> Path:
        """The target's own text at some temperatures, written once."""
        name = f"text-{temperatures.replace(',', '-')}{'-quick' if self.quick else ''}"
        file = self.folder / name / "generate/generated.parquet"
        if not file.exists():
            config = {
                "run": str(self.folder / name),
                "model": {
                    "target": str(self.assets / "weights/babyllama-target"),
                    "sweep": {
                        "generation_temperatures": [float(heat) for heat in temperatures.split(",")],
                        "max_new_tokens": 112,
                        "slots": 64,
                        "batch_size": 256,
                    },
                },
                "data": {
                    "prompts": {
                        "stories": {
                            "path": str(self.assets / "data/tinystories.jsonl"),
                            "limit": 64 if self.quick else 3000,
                            "prompt_tokens": 16,
                        }
                    },
                    "fold_whitespace": True,
                    "max_length": 256,
                },
            }
            described = self.folder / f"{name}.yaml"
            described.write_text(yaml.safe_dump(config))
            subprocess.run([sys.executable, "-m", "tempspec", "generate", "--config", str(described)], check=True)
        return file


def _estimate(estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def mean_over_seeds(study: Study, runs: list[Run]) -> dict[str, float]:
    """The mean acceptance of runs that differ in their seed, by temperature."""
    found = [study.result(run) for run in runs]
    return {heat: mean(row[heat]["value"] for row in found) for heat in found[0]}


def table(rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table: a line a name, a column a temperature."""
    heats = list(next(iter(rows.values())))
    lines = ["| run | " + " | ".join(f"T = {heat}" for heat in heats) + " |", "|---" * (len(heats) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[heat]:.3f}" for heat in heats) + " |")
    return "\n".join(lines)
