"""`fit --estimate` against the memory that a fit takes: short and long rows, eager attention and the fused one.

A part of `benchmarks/realistic.py`. One process makes a tiny fit, which loads every library, and then one fit a case;
what its resident memory rises to in each is measured. Blocks of the C library are given back as they are freed
(`MALLOC_MMAP_THRESHOLD_`): what it keeps for later is no tensor.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from goals import Goal

from tempspec.models.pair import Pair

FACTOR = 1.2
WORDS = 8000
ROWS = {"short": (16, 64), "long": (1, 1024)}

FITS = r"""
import ctypes, gc, json, re, resource, sys
from tempspec.__main__ import main
def held():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize()
first, *others = json.loads(sys.argv[1])
assert main(first) == 0
for command in others:
    before = held()
    with open("/proc/self/clear_refs", "w") as file:  # 5: the peak begins anew
        file.write("5")
    assert main(command) == 0
    with open("/proc/self/status") as status:
        print("bytes", int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) * 1024 - before)
"""


def estimate(quick: bool) -> list[Goal]:
    """The estimate over what is measured, for each kind of rows and attention.

    Args:
        quick: a smaller pair.
    """
    from tempspec.modules import estimate as estimates

    with TemporaryDirectory() as name:
        folder = Path(name)
        _pair(folder, hidden=320 if quick else 640)
        cases = [(rows, attention) for rows in ROWS for attention in ("eager", "sdpa")]
        expected = []
        for rows, attention in cases:
            batch, length = ROWS[rows]
            pair = _named(folder, attention)
            found = estimates.sizes(pair, batch_size=batch, length=length)
            expected.append(estimates.estimate(found, estimates.Way("one device", 1)).total)
        commands = [_fit(folder, "tiny", "tiny", 1, 8, "sdpa")]
        commands += [_fit(folder, "target", "draft", *ROWS[rows], attention) for rows, attention in cases]
        done = subprocess.run(
            [sys.executable, "-c", FITS, json.dumps(commands)],
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
    measured = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("bytes ")]
    return [
        Goal(f"fit --estimate over measured, {rows} rows, {attention}", said / got, low=1 / FACTOR, high=FACTOR)
        for (rows, attention), said, got in zip(cases, expected, measured, strict=True)
    ]


def _pair(folder: Path, hidden: int) -> None:
    """A target, a draft and a tiny model of one tokenizer, and a text of whole rows."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tempspec.models.loading import save_model

    backend = Tokenizer(WordLevel({"</s>": 0} | {f"w{number}": number for number in range(1, WORDS)}, unk_token="w1"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="w1")
    for name, (layers, width) in {"target": (4, hidden), "draft": (2, hidden), "tiny": (1, 16)}.items():
        config = LlamaConfig(
            vocab_size=WORDS,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=8,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
        )
        save_model(LlamaForCausalLM(config), tokenizer, folder / name)
    text = " ".join(f"w{1 + 3 * number % (WORDS - 1)}" for number in range(2047))
    (folder / "text.jsonl").write_text((json.dumps({"text": text}) + "\n") * 3)


def _named(folder: Path, attention: str) -> Pair:
    from tempspec.models.loading import ModelOptions

    return Pair(str(folder / "target"), str(folder / "draft"), None, ModelOptions(attn_implementation=attention))


def _fit(folder: Path, target: str, draft: str, batch: int, length: int, attention: str) -> list[str]:
    path = folder / f"{target}-{length}-{attention}.yaml"
    options = {
        "run": str(folder / f"run-{target}"),
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_checkpointing": False,
        },
        "model": {
            "target": str(folder / target),
            "draft": str(folder / draft),
            "loading": {"attn_implementation": attention},
        },
        "data": {
            "train": {"path": str(folder / "text.jsonl")},
            "max_length": length,
            "batch_size": batch,
            "validation_fraction": 0,
            "cache_dir": str(folder / "cache"),
        },
    }
    path.write_text(json.dumps(options))
    return ["fit", "--config", str(path)]
