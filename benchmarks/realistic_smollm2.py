"""What a real job costs with a model that people know: SmolLM2-135M-Instruct, its tokenizer and its chat template.

    OMP_NUM_THREADS=1 python benchmarks/realistic_smollm2.py --assets FOLDER --quick

A part of `benchmarks/realistic.py`. FOLDER holds `smollm2/`: what `save_pretrained` leaves of model and tokenizer.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from tempfile import TemporaryDirectory

from fit_memory import measured
from goals import Goal, finish, parse
from realistic_encoding import conversations, messages_of, on_one_core

from tempspec.models.loading import ModelOptions
from tempspec.models.pair import Pair
from tempspec.modules.fit import memory

NEEDS = "a folder with smollm2/: model.safetensors, config.json, tokenizer and chat template of SmolLM2-135M-Instruct"

DRAFT_LAYERS = 4
ROWS = (2, 512)
QUICK_ROWS = (1, 128)
"""Rows of a batch and their tokens."""
FACTOR = 1.2


def smollm2(assets: Path | None, quick: bool) -> list[Goal]:
    """The estimate of a fit, encoding and busy slots; nothing where the model is not there.

    Args:
        assets: the folder with `smollm2/`.
        quick: short rows, few conversations and prompts.
    """
    folder = None if assets is None else Path(assets) / "smollm2"
    if folder is None or not (folder / "config.json").is_file():
        print(f"SmolLM2 is left out: --assets needs {NEEDS}")
        return []
    return [estimate(folder, quick), encoding(folder, quick), busy_share(folder, quick)]


def estimate(folder: Path, quick: bool) -> Goal:
    """`fit --estimate` of a draft of some of its layers over what the fit takes."""
    rows, length = QUICK_ROWS if quick else ROWS
    model = {"target": str(folder), "draft_layers": DRAFT_LAYERS, "loading": {"dtype": "float32"}}
    with TemporaryDirectory() as name:
        texts = [turn["content"] for row in conversations(40) for turn in messages_of(row)[0]]
        lines = [json.dumps({"text": " ".join(texts)})] * 2
        Path(name, "text.jsonl").write_text("\n".join(lines))
        first, fit = (_fit(Path(name), each, model, rows, length) for each in ("first", "second"))
        (taken,) = measured([first, fit])
        said = _expected_bytes(fit)
    print(f"fit of {DRAFT_LAYERS} layers of SmolLM2, {rows} x {length}: {taken / 2**20:.0f} MiB measured")
    return Goal(f"fit --estimate over measured, SmolLM2, {rows} x {length}", said / taken, 1 / FACTOR, FACTOR)


def _expected_bytes(command: list[str]) -> int:
    """What `fit --estimate` says of a fit on one device."""
    options = json.loads(Path(command[-1]).read_text())
    model, data = options["model"], options["data"]
    pair = Pair(model["target"], model.get("draft"), model.get("draft_layers"), ModelOptions(**model["loading"]))
    found = memory.sizes(pair, batch_size=data["batch_size"], length=data["max_length"])
    return memory.estimate(found, memory.Way("one device", 1)).total


def _fit(folder: Path, name: str, model: dict, batch: int, length: int) -> list[str]:
    """A fit of two steps on `text.jsonl`."""
    path = folder / f"{name}.yaml"
    trainer = {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "enable_checkpointing": False}
    text = {"train": {"path": str(folder / "text.jsonl")}, "max_length": length, "batch_size": batch}
    data = text | {"validation_fraction": 0, "cache_dir": str(folder / "cache")}
    path.write_text(json.dumps({"run": str(folder / f"run-{name}"), "trainer": trainer, "model": model, "data": data}))
    return ["fit", "--config", str(path)]


def encoding(folder: Path, quick: bool) -> Goal:
    """Its tokenizer and chat template."""
    from transformers import AutoTokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ratio, plain, ours, tokens = on_one_core(tokenizer, conversations(300 if quick else 3000))
    print(f"conversations of {tokens:.0f} tokens of SmolLM2, rows/s: the plain call {plain:.0f}, one core {ours:.0f}")
    return Goal("encoding on one core over a plain batched tokenizer call, SmolLM2", ratio, low=0.9)


def busy_share(folder: Path, quick: bool) -> Goal:
    """The share of slot-rounds with a request while prompts wait, for answers of uneven lengths."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tempspec.decoding.engine import Engine
    from tempspec.interfaces import Request

    prompts, slots, longest = (40, 4, 16) if quick else (400, 32, 64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    draw, asked = random.Random(0), conversations(prompts)
    requests = [
        Request(
            tuple(tokenizer(messages_of(row)[0][0]["content"][:200])["input_ids"]),
            1.0,
            max_new_tokens=min(1 + int(draw.expovariate(3 / longest)), longest),
            seed=number,
        )
        for number, row in enumerate(asked)
    ]
    engine = Engine(model, len(tokenizer), slots=slots)
    engine.reserve(max(len(request.prompt) for request in requests) + longest)
    began = time.perf_counter()
    tokens = sum(len(completion.tokens) for completion in engine.run(iter(requests)))
    seconds = time.perf_counter() - began
    print(f"SmolLM2, {prompts} requests in {slots} slots: {tokens} tokens in {seconds:.0f} s")
    share = engine.tally.queued_busy / engine.tally.queued_offered
    return Goal(f"busy share of {slots} slots until the queue of {prompts} is empty, SmolLM2", share, low=0.9)


def main() -> None:
    """Measure them."""
    options = parse(ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter), NEEDS)
    goals = smollm2(options.assets, options.quick)
    finish(goals) if goals else sys.exit(2)


if __name__ == "__main__":
    main()
