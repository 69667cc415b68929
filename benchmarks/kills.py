"""Runs that are killed at random moments, again and again, and end as if nothing had happened.

fit, predict and generate of a small pair, and a study of two drafts, are stopped by SIGKILL, SIGTERM and SIGINT at
moments drawn over their whole life, started again with the same command line, and at last left to finish. Every run is
a process of its own, forked from one that has only imported the package: imports would be most of its life. What they
leave is compared with what an unbroken run leaves: weights byte for byte, logged losses, every row but its clock times
and its closed forms, whose last digits depend on a row's neighbours.
"""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from goals import Goal, finish

WORDS = ["</s>", "?", *(f"w{number}" for number in range(62))]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FORKS = multiprocessing.get_context("forkserver")
IN_TIME = 30.0
"""Seconds that a run may take to save and leave after SIGTERM."""


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        name: the subcommand.
        outcome: what a finished run leaves, of its folder.
        config: the configuration's file name.
        folder: the option that names the folder.
        options: what follows.
    """

    name: str
    outcome: Callable[[Path], object]
    config: str = "pair.yaml"
    folder: str = "--run"
    options: tuple[str, ...] = ()


def rows(path: Path) -> list[dict[str, object]]:
    """The rows of a Parquet file without their clock times and closed forms."""
    table = pq.read_table(path).to_pylist()
    left_out = ("seconds_", "timed_in", "expected_acceptance", "expected_length")
    return [{key: value for key, value in row.items() if not key.startswith(left_out)} for row in table]


def trained(run: Path) -> object:
    """The draft's weights and all that was logged but speeds."""
    with (run / "fit/metrics.csv").open(newline="") as file:
        logged = [
            {key: value for key, value in row.items() if "tokens_per_second" not in key} for row in csv.DictReader(file)
        ]
    return (run / "fit/draft/model.safetensors").read_bytes(), logged


def studied(study: Path) -> object:
    """The index but for its name, every draft that was fitted, all rows of texts, measurements and decodings."""
    fitted = sorted(path.parents[1] for path in study.glob("runs/*/fit/draft"))
    tables = sorted(study.glob("**/*.parquet"))
    return (
        json.loads((study / "study.json").read_text()) | {"name": ""},
        [(path.name, trained(path)) for path in fitted],
        [(path.relative_to(study).as_posix(), rows(path)) for path in tables],
    )


COMMANDS = (
    Command("fit", trained, options=("--ckpt_path", "auto")),
    Command("predict", lambda run: rows(run / "predict/predictions.parquet")),
    Command("generate", lambda run: rows(run / "generate/generated.parquet")),
    Command("study", studied, config="study.yaml", folder="--study"),
)


def make_pair(folder: Path, share: int = 1) -> None:
    """A small pair with dropout in the draft, a corpus, and the configurations of a run and of a study.

    Args:
        folder: where they go.
        share: a run takes one part in so many of the steps and prompts.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tempspec.models.loading import save_model

    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="?")
    for name, layers in (("target", 4), ("draft", 2)):
        torch.manual_seed(layers)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers, "num_attention_heads": 4}
        config = LlamaConfig(
            vocab_size=len(WORDS), max_position_embeddings=128, attention_dropout=0.1 * (name == "draft"), **shape
        )
        save_model(LlamaForCausalLM(config), tokenizer, folder / name)
    draw = random.Random(0)
    texts = (" ".join(draw.choices(WORDS[2:], k=24)) for _ in range(300))
    (folder / "text.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    text = {"path": str(folder / "text.jsonl")}
    configuration = {
        "trainer": {
            "max_steps": 160 // share,
            "val_check_interval": 10,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
        },
        "model": {
            "target": str(folder / "target"),
            "draft": str(folder / "draft"),
            "temperature": {"class_path": "Uniform", "init_args": {"low": 0.5, "high": 1.5}},
            "sweep": {"max_new_tokens": 24, "timing_prompts": 0, "write_every": 0.1, "slots": 4},
        },
        "data": {
            "train": text,
            "validation": {"held": text | {"limit": 16}},
            "prompts": {"p": text | {"limit": 40 // share, "prompt_tokens": 4}},
            "max_length": 24,
            "cache_dir": str(folder / "cache"),
        },
    }
    (folder / "pair.yaml").write_text(yaml.safe_dump(configuration))
    configuration["trainer"]["max_steps"] = 40 // share
    configuration["model"]["sweep"] |= {"target_temperatures": [0.0, 1.0], "max_new_tokens": 12}
    configuration["data"]["prompts"]["p"]["limit"] = 12 // share
    del configuration["data"]["validation"]  # a study measures on texts of its own
    drafts = {"given": {"fit": False}, "fitted": {"labels": {"train_temperature": 1.0}}}
    study = {"study": str(folder / "study"), "drafts": drafts, "experiment": configuration}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


def call(arguments: list[str], errors: Path) -> None:
    """The command line, in a process of its own; what it prints goes nowhere and to a file."""
    for stream, path in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    from tempspec.__main__ import main

    sys.exit(main(arguments))


class Harness:
    """Kills and counts.

    Args:
        folder: where the configurations are and runs go.
        seed: of signals and moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.draw = random.Random(seed)
        self.kills = self.tracebacks = self.unequal = 0
        self.slowest = 0.0

    def punish(self, command: Command, kills: int) -> None:
        """Kill a command so often, in runs of a few kills each, and compare every finished one."""
        began = time.monotonic()
        whole = self._finished(command, self.folder / f"{command.name}-whole")
        lifetime = time.monotonic() - began
        begun, due = self.kills, self.kills + kills
        for episode in itertools.count():
            if self.kills == due:
                break
            run = self.folder / f"{command.name}-{episode}"
            while self.kills < min(due, 4 * (episode + 1) + begun) and self._kill(command, run, lifetime):
                pass
            if (found := self._finished(command, run)) != whole:
                self.unequal += 1
                print(f"{command.name}, run {episode} differs: {_difference(found, whole)}", flush=True)
        print(f"{command.name}: {kills} kills over a life of {lifetime:.1f} s", flush=True)

    def _start(self, command: Command, run: Path) -> BaseProcess:
        """The command line in a new process."""
        options = ["--config", str(self.folder / command.config), command.folder, str(run), *command.options]
        process = FORKS.Process(target=call, args=([command.name, *options], self.folder / "stderr"))
        process.start()
        return process

    def _finished(self, command: Command, run: Path) -> object:
        process = self._start(command, run)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{command.name} did not finish: {self._errors()}")
        return command.outcome(run)

    def _kill(self, command: Command, run: Path, lifetime: float) -> bool:
        """Start it, let it live for a random part of a whole life, mostly of its second half, and kill it.

        Returns:
            Whether it was still running; a continued run may finish before its moment.
        """
        share = self.draw.uniform(0.0, 1.0) if self.draw.random() < 0.3 else self.draw.uniform(0.5, 1.0)
        number = self.draw.choice(SIGNALS)
        process = self._start(command, run)
        process.join(timeout=share * lifetime)
        met = process.exitcode is None and process.pid is not None
        if met:
            self.kills += 1
            os.kill(process.pid, number)
        began = time.monotonic()
        process.join()
        if process.exitcode and number == signal.SIGTERM:
            self.slowest = max(self.slowest, time.monotonic() - began)
        if "Traceback" in (error := self._errors()):
            self.tracebacks += 1
            print(f"{command.name}, {number.name} after {share * lifetime:.1f} s: {error[-800:]}", flush=True)
        return met

    def _errors(self) -> str:
        """What the last process said."""
        return (self.folder / "stderr").read_text(errors="replace")


def _difference(found: object, whole: object) -> str:
    """The first part that differs, cut to a line or two."""
    if isinstance(found, dict) and isinstance(whole, dict) and list(found) == list(whole):
        name = next(name for name in found if found[name] != whole[name])
        return f"{name}: {_difference(found[name], whole[name])}"
    if isinstance(found, (list, tuple)) and isinstance(whole, (list, tuple)):
        if len(found) != len(whole):
            return f"{len(found)} entries instead of {len(whole)}"
        return next(_difference(*pair) for pair in zip(found, whole, strict=True) if pair[0] != pair[1])
    return f"{str(found)[:300]} instead of {str(whole)[:300]}"


def main() -> None:
    """Kill, compare, report."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40, help="over all commands")
    parser.add_argument("--commands", nargs="+", default=[command.name for command in COMMANDS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one kill of each, of shorter runs")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    FORKS.set_forkserver_preload(["tempspec.cli.study", "tempspec.cli.stage_files", "tempspec.modules.distillation"])
    first = FORKS.Process(target=int)  # waits for the imports, which no life should count
    first.start()
    first.join()
    with tempfile.TemporaryDirectory() as scratch:
        make_pair(Path(scratch), 8 if options.quick else 1)
        harness = Harness(Path(scratch), options.seed)
        for command in (command for command in COMMANDS if command.name in options.commands):
            harness.punish(command, 1 if options.quick else -(-options.kills // len(options.commands)))
    finish(
        [
            Goal("kills that met a living run", harness.kills, low=1 if options.quick else 40, digits=0),
            Goal("finished runs that differ from an unbroken one", harness.unequal, high=0, digits=0),
            Goal("tracebacks", harness.tracebacks, high=0, digits=0),
            Goal("seconds from SIGTERM to the end, the slowest", harness.slowest, high=IN_TIME, digits=1),
        ]
    )


if __name__ == "__main__":
    main()
