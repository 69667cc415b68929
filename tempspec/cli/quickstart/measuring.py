"""How fast the user's model is on this machine: a few tokens of everything that the quickstart does (floor 6)."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Timer

from tempspec.cli.quickstart.sizing import Rates
from tempspec.cli.screen import quiet
from tempspec.data.module import TextDataModule
from tempspec.decoding.engine import Engine
from tempspec.files import write_atomically
from tempspec.interfaces import Request
from tempspec.models.loading import DType, ModelOptions
from tempspec.models.pair import Pair
from tempspec.modules.distillation import DistillationModule
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import TokenwiseRejection

__all__ = ["dtype_here", "measure"]

_TEXT = "def double(numbers):\n    return [2 * number for number in numbers]\n\n\n" * 6
TOGETHER, SHORT, LONG = 16, 1, 5
"""Questions of a batch, and new tokens: the time of the short ones is taken off that of the long ones."""
ROWS, STEPS = 2, 2
LIBRARIES = 8.0
"""Seconds for a step to load the libraries, about."""


def dtype_here() -> DType:
    """float32 on a CPU, where half precision is often the slower one; the target's own on a GPU."""
    return "auto" if torch.cuda.is_available() else "float32"


def measure(target: str, layers: int, folder: Path) -> Rates:
    """Load the target, decode a few tokens and train two steps.

    Args:
        target: folder or hub name.
        layers: of the draft, which are the target's first.
        folder: gets a folder `measured`, with what the steps are trained on.
    """
    began = time.perf_counter()
    decoding = _Decoding(target, layers)
    start = LIBRARIES + time.perf_counter() - began
    return Rates(
        start=start,
        read=decoding.seconds(TOGETHER, 1, plain=True) / (TOGETHER * len(decoding.ids)),
        write=decoding.token(TOGETHER, plain=True),
        draft=decoding.token(TOGETHER, plain=False),
        write_alone=decoding.token(1, plain=True),
        draft_alone=decoding.token(1, plain=False),
        learn=_learn(target, layers, folder / "measured"),
    )


class _Decoding:
    """A loaded pair that is timed.

    Args:
        target: folder or hub name.
        layers: of the draft.
    """

    def __init__(self, target: str, layers: int) -> None:
        self.pair = Pair(target, None, layers, ModelOptions(dtype=dtype_here()))
        self.pair.use(torch.device("cuda" if torch.cuda.is_available() else "cpu"), decoding=True)
        self.model = self.pair.target_model.eval()
        self.draft = self.pair.load_draft(dtype_here()).eval()
        self.ids = self.pair.tokenizer(_TEXT).input_ids

    def seconds(self, questions: int, tokens: int, *, plain: bool) -> float:
        """Of decoding so many new tokens after each of so many equal questions."""
        asked = [Request(tuple(self.ids), max_new_tokens=tokens, key=str(n), seed=n) for n in range(questions)]
        engine = Engine(
            self.model,
            self.pair.vocabulary,
            verifier=None if plain else TokenwiseRejection(),
            drafter=None if plain else CausalLM(),
            length=None if plain else FixedLength(4),
            draft=None if plain else self.draft,
            slots=questions,
        )
        began = time.perf_counter()
        list(engine.run(asked))
        return time.perf_counter() - began

    def token(self, questions: int, *, plain: bool) -> float:
        """Seconds for a new token; the questions' own are taken off."""
        long, short = (self.seconds(questions, tokens, plain=plain) for tokens in (LONG, SHORT))
        return max(long - short, long / 10) / (questions * (LONG - SHORT))


def _learn(target: str, layers: int, folder: Path) -> float:
    """Seconds for a token of fit."""
    rows = [{"text": f"{number} {_TEXT}"} for number in range(ROWS * STEPS)]
    write_atomically(folder / "rows.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    data = TextDataModule(
        target,
        train=str(folder / "rows.jsonl"),
        validation_fraction=0.0,
        pack=False,
        batch_size=ROWS,
        cache_dir=str(folder),
    )
    module = DistillationModule(target, draft_layers=layers, loading=ModelOptions(dtype=dtype_here()))
    timer = Timer()
    with _silence():
        pl.Trainer(max_steps=STEPS, callbacks=[timer], **_silent(folder)).fit(module, data)
    tokens = sum(len(row) for row in data.tokenizer([row["text"] for row in rows]).input_ids)
    return timer.time_elapsed("train") / tokens


@contextmanager
def _silence() -> Iterator[None]:
    """What fit says of its data and devices is of no use before the steps begin."""
    quiet()
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _silent(folder: Path) -> dict[str, Any]:
    """Options of a trainer that shows and keeps nothing."""
    nothing = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return nothing | {"default_root_dir": str(folder), "limit_val_batches": 0}
