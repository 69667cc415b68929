"""How fast conversations become rows, against one plain batched tokenizer call a core.

python benchmarks/realistic_encoding.py --quick
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from argparse import ArgumentParser
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import datasets
import numpy as np
from goals import Goal, finish, parse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tempspec.data.encoding import Encoder
from tempspec.data.rows import EncodingReport, RowOptions, encode_rows
from tempspec.data.sources import Source, messages_of, read

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASKED, ANSWERED = 250, 1400
"""Mean characters of a question and of an answer, of which a conversation has 3.3 on average."""
AT_ONCE = 1000
PIECE = 500
"""Rows of a pair of timings: they last a second or two each, in which a machine changes little."""
ROUNDS = 5
LONGEST = 4096


def encoding(quick: bool) -> list[Goal]:
    """Rows/s on one core and on two, as shares of what plain tokenizer calls do there.

    Args:
        quick: 600 conversations, not 100,000 (of which the shares on one core take 3,000).
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = a_tokenizer()
    rows = conversations(600 if quick else 100_000)
    ratio, plain, one, tokens = on_one_core(tokenizer, rows.select(range(min(len(rows), 3000))))
    began = perf_counter()
    timed_rows(Encoder(tokenizer), rows, 2)
    two = len(rows) / (perf_counter() - began)
    print(
        f"{len(rows):,} conversations of {tokens:.0f} tokens, rows/s: the plain call {plain:.0f}, one core {one:.0f}, "
        f"two {two:.0f}"
    )
    goals = [Goal("encoding on one core over a plain batched tokenizer call", ratio, low=0.9)]
    if (os.cpu_count() or 1) > 1 and not quick:  # starting two processes takes longer than a few rows
        both = plain_on_two_cores(tokenizer, rows.select(range(3000)))
        print(f"the plain call on two cores at once: {both:.0f} rows/s")
        goals.append(Goal("encoding on two cores over a plain call on each", two / both, low=0.9))
    return goals


def on_one_core(tokenizer: PreTrainedTokenizerFast, rows: datasets.Dataset) -> tuple[float, float, float, float]:
    """How fast conversations become rows on one core.

    Pieces of them are timed in turn with the plain call on the same texts: other work on the machine moves every time
    by a tenth, and both by the same.

    Args:
        tokenizer: with a chat template.
        rows: conversations.

    Returns:
        The share of the plain call's speed, rows/s of that call and of ours, and tokens a row.
    """
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in plain_messages(rows)]
    tokens = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) / len(texts)
    pairs, encoder = [], Encoder(tokenizer)  # one, as a corpus has: it learns the template once
    for start in [*range(0, len(rows), PIECE)] * ROUNDS:
        members = range(start, min(start + PIECE, len(rows)))
        share = rows.select(members)
        times = timed_plain(tokenizer, [texts[index] for index in members]), timed_rows(encoder, share, 1)
        pairs.append([seconds / len(members) for seconds in times])
    plain, ours = (median(seconds) for seconds in zip(*pairs, strict=True))
    return median(one / other for one, other in pairs), 1 / plain, 1 / ours, tokens


def plain_on_two_cores(tokenizer: PreTrainedTokenizerFast, rows: datasets.Dataset) -> float:
    """Rows/s of two processes that call the tokenizer at the same time: cores share what lies between them and memory.

    Args:
        tokenizer: with a chat template.
        rows: conversations, which each process takes all of.
    """
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in plain_messages(rows)]
    with ProcessPoolExecutor(2) as pool:
        return sum(pool.map(_rows_a_second, [tokenizer] * 2, [texts] * 2))


def _rows_a_second(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    timed_plain(tokenizer, texts[: AT_ONCE // 4])
    began = perf_counter()
    timed_plain(tokenizer, texts)
    return len(texts) / (perf_counter() - began)


def a_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 32,000 tokens with ChatML."""
    rng = np.random.default_rng(0)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator((said(rng, 1400) for _ in range(2000)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


@cache
def corpus() -> str:
    """Text that every machine has: the documentation strings and code of Python's own library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def said(rng: np.random.Generator, mean: int) -> str:
    """A text of about so many characters."""
    size = 20 + int(rng.exponential(mean))
    begin = int(rng.integers(len(corpus()) - size))
    return corpus()[begin : begin + size]


def conversations(count: int) -> datasets.Dataset:
    """Conversations as a reader hands them over: JSON text a row."""
    rng = np.random.default_rng(2)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "talks.jsonl"
        with path.open("w") as file:
            for _ in range(count):
                turns = [
                    {"role": role, "content": said(rng, mean)}
                    for _ in range(1 + rng.poisson(2.3))
                    for role, mean in (("user", ASKED), ("assistant", ANSWERED))
                ]
                file.write(json.dumps({"messages": turns}) + "\n")
        return read(Source(str(path)))


def plain_messages(rows: datasets.Dataset) -> list[dict]:
    """The rows with their messages as objects."""
    return [{"messages": messages_of(row)[0]} for row in rows]


def timed_plain(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Seconds of the processor that the tokenizer takes on texts that are rendered already."""
    began = process_time()
    for start in range(0, len(texts), AT_ONCE):
        tokenizer(texts[start : start + AT_ONCE], add_special_tokens=False, return_attention_mask=False)
    return process_time() - began


def timed_rows(encoder: Encoder, rows: datasets.Dataset, workers: int) -> float:
    """Seconds of this process from conversations to rows."""
    began = process_time()
    with TemporaryDirectory() as scratch:
        made = encode_rows(
            rows, Source("talks"), encoder, RowOptions(LONGEST), EncodingReport(), workers, Path(scratch)
        )
        count = sum(len(table) for table in made)
    if count != len(rows):
        sys.exit(f"expected {len(rows)} rows, got {count}")
    return process_time() - began


if __name__ == "__main__":
    finish(encoding(parse(ArgumentParser(description=__doc__)).quick))
