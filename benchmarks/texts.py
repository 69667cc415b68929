"""The texts of the studies: stories, a few of them held out, and what the target writes behind their first words."""

import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from tempspec.data.sources import Source

TRAINING, MEASURED = 3800, 3888
"""Stories that runs may train on come first, then those that they are measured on, then those for fitting."""
PROMPT, RESPONSE = 32, 96
"""Characters of a prompt, and those that the target adds."""
LENGTH = PROMPT + RESPONSE


class Texts:
    """Files of text, each made at its first use.

    Args:
        folder: where they are kept.
        assets: the folder with weights/ and data/.
        quick: little of everything.
    """

    def __init__(self, folder: Path, assets: Path, quick: bool) -> None:
        self.folder = folder / ("texts-quick" if quick else "texts")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.target = str(assets / "weights/babyllama-target")
        self.stories = assets / "data/tinystories.jsonl"
        self.quick = quick

    def training(self, text: str) -> list[Source]:
        """The corpora of a run: `fixed` are stories, else temperatures of the target's own text, joined by commas."""
        if text == "fixed":
            return [Source(str(self._stories("train")))]
        return [Source(str(self._sampled(float(temperature), "train"))) for temperature in text.split(",")]

    def measured(self, temperatures: list[float]) -> dict[str, Source]:
        """Validation sets by name: held-out stories and text sampled at each temperature, to measure and to fit on."""
        parts = ("measured", "fit")
        fixed = {f"{part} fixed": Source(str(self._stories(part))) for part in parts}
        return fixed | {
            f"{part} {temperature:g}": Source(str(self._sampled(temperature, part)))
            for part in parts
            for temperature in temperatures
        }

    def _stories(self, part: str) -> Path:
        file = self.folder / f"stories-{part}.jsonl"
        if not file.exists():
            lines = self.stories.read_text().splitlines()
            ends = {"train": lines[:TRAINING], "measured": lines[TRAINING:MEASURED], "fit": lines[MEASURED:]}
            few = {"train": 64, "measured": 8, "fit": 4} if self.quick else {}
            file.write_text("\n".join(ends[part][: few.get(part)]) + "\n")
        return file

    def _sampled(self, temperature: float, part: str) -> Path:
        """The target's own text at one temperature; argmax is never trained on."""
        folder = self.folder / f"text-{temperature:g}"
        if not (file := folder / f"{part}.parquet").exists():
            parts = ["measured", "fit"] + ["train"] * (temperature > 0)
            self._generate(folder, temperature, parts)
            found = pq.read_table(folder / "generate/generated.parquet")
            for each in parts:
                pq.write_table(found.filter(pc.equal(found["prompt_set"], each)), folder / f"{each}.parquet")
        return file

    def _generate(self, folder: Path, temperature: float, parts: list[str]) -> None:
        prompts = {
            part: {"path": str(self._stories(part)), "limit": TRAINING, "prompt_tokens": PROMPT} for part in parts
        }
        sweep = {"generation_temperatures": [temperature], "max_new_tokens": RESPONSE, "slots": 64}
        config = {
            "run": str(folder),
            "model": {"target": self.target, "sweep": sweep},
            "data": {"prompts": prompts, "collapse_whitespace": True, "max_length": 256},
        }
        described = folder.with_name(f"{folder.name}.yaml")
        described.write_text(yaml.safe_dump(config))
        line = ["tempspec", "generate", "--config", str(described), "--trainer.enable_progress_bar", "false"]
        print("$", " ".join(line), flush=True)
        subprocess.run([sys.executable, "-m", *line], check=True)
