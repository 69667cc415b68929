"""A study of 4 drafts x 8 temperatures x 4 verifiers against its 128 cells, each run alone from a cold start.

A cold cell is the command `tempspec study` on the same file with one draft, one temperature and one verifier, in an
empty folder: the target's texts at that temperature, the analytic grid, the decoding and the timing pass. All drafts
are taken as they are, and a cell counts falls from its own temperature: it does nothing that the study does not do.

All 128 cells would take half an hour: ten of them, drawn at random, are run, and their mean stands for the rest, with
its 95% interval (Student's t, 9 degrees of freedom). The goal is held against the interval's unfavourable end, too.
Models have random weights and the quickstart's shape (6 layers of 128, vocabulary 2,048; drafts are the target's own
first 1 to 4 layers), since seconds are all that is asked for. Seconds are the processor's (user and system, one
thread), so that company on the machine does not count.

    OMP_NUM_THREADS=1 python benchmarks/study.py
"""

import copy
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml
from goals import Goal, finish, parse
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tempspec.models.loading import save_model

VOCABULARY = 2048
TEMPERATURES = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
RULES = {
    "rejection": "TokenwiseRejection",
    "block": "BlockVerification",
    "coupling": "GumbelCoupling",
    "match": "SampledMatch",
}
DRAFTS = {f"layers-{layers}": {"fit": False, "options": {"model.draft_layers": layers}} for layers in (1, 2, 3, 4)}
PROMPTS, NEW = 24, 32
DRAWN, T_QUANTILE = 10, 2.262
"""Cold cells that are run, and the 97.5% quantile of Student's t for their mean."""


def prepare(folder: Path) -> None:
    """A target with random weights, its tokenizer, and random text."""
    torch.manual_seed(0)
    words = [f"w{number}" for number in range(VOCABULARY - 2)]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(["</s>", "?", *words])}, unk_token="?"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="?")
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **shape)
    save_model(LlamaForCausalLM(config), tokenizer, folder / "target")
    chosen = random.Random(0)
    texts = [" ".join(chosen.choices(words, k=100)) for _ in range(PROMPTS)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def study(folder: Path, *, quick: bool) -> dict[str, Any]:
    """The study's file."""
    temperatures, rules, drafts = TEMPERATURES, RULES, DRAFTS
    prompts, new, timed = PROMPTS, NEW, 2
    if quick:
        temperatures, rules, drafts = temperatures[3:5], dict(list(rules.items())[:2]), dict(list(drafts.items())[:2])
        prompts, new, timed = 4, 8, 1
    sweep = {"target_temperatures": temperatures, "max_new_tokens": new, "timing_prompts": timed}
    source = {"path": f"{folder}/text.jsonl", "limit": prompts}
    return {
        "drafts": drafts,
        "reference_temperature": 1.0,
        "experiment": {
            "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
            "model": {"target": f"{folder}/target", "verifiers": rules, "sweep": sweep},
            "data": {"prompts": {"words": source}, "cache_dir": f"{folder}/cache"},
        },
    }


def cell(whole: dict[str, Any], draft: str, temperature: float, rule: str) -> dict[str, Any]:
    """The file of one cell alone."""
    config = copy.deepcopy(whole) | {"drafts": {draft: whole["drafts"][draft]}, "reference_temperature": temperature}
    config["experiment"]["model"]["verifiers"] = {rule: whole["experiment"]["model"]["verifiers"][rule]}
    config["experiment"]["model"]["sweep"]["target_temperatures"] = [temperature]
    return config


def timed(config: dict[str, Any], folder: Path, *options: str) -> float:
    """Processor seconds of the command line on a file, from the start of the process to its end."""
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(config | {"study": f"{folder}/made"}, sort_keys=False))
    began = processor()
    line = [sys.executable, "-m", "tempspec", "study", "--config", f"{folder}/study.yaml", *options]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return processor() - began


def processor() -> float:
    """Seconds that the processor has spent on finished children."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def main() -> None:
    """Measure and compare."""
    options = parse(ArgumentParser(description=__doc__.partition("\n")[0]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        whole = study(folder, quick=options.quick)
        model = whole["experiment"]["model"]
        temperatures, rules = model["sweep"]["target_temperatures"], model["verifiers"]
        cells = [
            (draft, temperature, rule) for draft in whole["drafts"] for temperature in temperatures for rule in rules
        ]
        together = timed(whole, folder / "whole")
        start = timed(whole, folder / "start", "--dry-run")
        print(f"the study, {len(cells)} cells: {together:.1f} s; its plan alone (--dry-run): {start:.1f} s", flush=True)
        alone = []
        for number, place in enumerate(random.Random(0).sample(cells, 2 if options.quick else DRAWN)):
            alone.append(timed(cell(whole, *place), folder / f"cell-{number}"))
            print(f"cold cell {', '.join(map(str, place))}: {alone[-1]:.1f} s", flush=True)
    each, half = mean(alone), math.nan if options.quick else T_QUANTILE * stdev(alone) / math.sqrt(len(alone))
    low, high = (len(cells) * (each + sign * half) for sign in (-1, 1))
    print(f"all {len(cells)} cells alone: {len(cells) * each:.0f} s [{low:.0f}, {high:.0f}], from {len(alone)} drawn")
    claim = f"processor seconds of the study over those of its {len(cells)} cells run cold"
    goals = [Goal(claim, together / (len(cells) * each), high=0.3)]
    finish(goals if options.quick else [*goals, Goal(f"{claim}, unfavourable end", together / low, high=0.3)])


if __name__ == "__main__":
    main()
