"""Decoding at the size of real jobs: the row store's memory, and how busy the engine's slots are.

`python benchmarks/realistic_store.py [--quick]`; `benchmarks/realistic.py` runs it with the rest.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

from goals import Goal, finish, parse

ROWS, IDS = 100_000, 1_300
BEFORE_GIB, BEFORE_SECONDS = 5.9, 18.0
"""What reading these rows took when the store made Python objects of them."""

PROMPTS, SLOTS = 1_400, 256

_WRITE = """
import sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
folder, rows, ids = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw, part = np.random.default_rng(0), 500
text = " ".join(f"word{number}" for number in draw.integers(0, 9_999, 20_000))
order = np.arange(rows)
for at in range(0, rows, 200):  # rows are finished nearly in their order
    draw.shuffle(order[at : at + 200])
for number, at in enumerate(range(0, rows, part)):
    members = order[at : at + part]
    lengths = draw.integers(ids // 2, ids + ids // 2, len(members))
    ends = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())
    table = pa.table({
        "key": [f"acceptance/target/p/{row}/t1/d1/s0" for row in members],
        "response": [text[row % 9_000 :][: 4 * length] for row, length in zip(members, lengths)],
        "response_ids": pa.ListArray.from_arrays(ends, pa.array(draw.integers(0, 49_152, lengths.sum()))),
        "turn": np.ones(len(members), np.int64),
    })
    pq.write_table(table, f"{folder}/generated.parts/0000-{number:06d}.parquet")
"""

_MERGE = """
import sys, time
from pathlib import Path
from tempspec.modules.predict.row_store import RowStore
store = RowStore(sys.argv[1], "generated", {})
began = time.process_time()
keys = store.keys()
read = time.process_time() - began
store.finish(sorted(keys, key=lambda key: int(key.split("/")[3])))
count, tokens = store.count("response_ids", keys)
assert count == int(sys.argv[2])
status = Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
print(peak / 2**20, read, time.process_time() - began)  # ru_maxrss would count what the parent process held
"""


def store_memory(quick: bool) -> list[Goal]:
    """What a continued run with many finished rows takes in its process: the plan's reading and the merge at the end.

    Args:
        quick: a tenth of the rows.
    """
    rows = ROWS // 10 if quick else ROWS
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "generated.parts").mkdir()
        Path(folder, "generated.origin.json").write_text("{}")
        subprocess.run([sys.executable, "-c", _WRITE, folder, str(rows), str(IDS)], check=True)
        done = subprocess.run(
            [sys.executable, "-c", _MERGE, folder, str(rows)], check=True, capture_output=True, text=True
        )
    peak, read, whole = map(float, done.stdout.split())
    print(
        f"row store, {rows} rows of {IDS} ids: processor seconds to read the keys {read:.1f}, and to merge {whole:.1f}"
    )
    return [
        Goal(f"GiB that {rows} rows of {IDS} ids take at most, imports included", peak, high=BEFORE_GIB / 10, digits=2),
        Goal("processor seconds to see which rows are there", read, high=BEFORE_SECONDS / 10, digits=2),
    ]


def busy_share(quick: bool) -> list[Goal]:
    """The share of slot-rounds with a request, for many prompts of uneven answers; see `tempspec.decoding.tally`.

    Args:
        quick: a quarter of the prompts and slots.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tempspec.decoding.engine import Engine
    from tempspec.interfaces import Request

    prompts, slots = (PROMPTS // 4, SLOTS // 4) if quick else (PROMPTS, SLOTS)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, eos_token_id=None, pad_token_id=None, **shape)).eval()
    draw = random.Random(0)
    requests = [
        Request((1, 2, 3), 1.0, max_new_tokens=min(1 + int(draw.expovariate(1 / 48)), 128), seed=number)
        for number in range(prompts)
    ]
    engine = Engine(model, 32, slots=slots)
    engine.reserve(131)
    began = time.perf_counter()
    for _ in engine.run(iter(requests)):
        pass
    tally = engine.tally
    print(
        f"{prompts} requests in {slots} slots, answers of 1 to 128 tokens: {time.perf_counter() - began:.0f} s; busy "
        f"share until the last answer is finished {tally.busy / tally.offered:.3f}"
    )
    share = tally.queued_busy / tally.queued_offered
    return [Goal(f"busy share of {slots} slots until the queue of {prompts} is empty", share, low=0.9)]


def main() -> None:
    """Measure both."""
    options = parse(ArgumentParser(description=__doc__))
    finish([*store_memory(options.quick), *busy_share(options.quick)])


if __name__ == "__main__":
    main()
