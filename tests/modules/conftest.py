"""A real pair on disk: tiny Llamas over a word-level tokenizer, and a corpus that their chain wrote."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.modules.runs import data_module, quiet_trainer
from tests.tiny import WORDS, save_pair, words


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> Path:
    """A folder with `target` (2 layers, head padded to 32), `draft` (1 layer), `corpus.jsonl` and `prompts.jsonl`."""
    folder = tmp_path_factory.mktemp("pair")
    save_pair(folder, words())
    generator = torch.Generator().manual_seed(0)

    def text(length):
        return " ".join(WORDS[i] for i in torch.randint(1, 24, (length,), generator=generator).tolist())

    for name, rows in (("corpus", 60), ("prompts", 6)):
        lines = [json.dumps({"prompt": text(5), "response": text(12)}) for _ in range(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def data(pair, tmp_path):
    """A data module over the pair's files."""
    return data_module(pair, tmp_path / "cache")


@pytest.fixture
def trainer(tmp_path):
    """Makes quiet CPU trainers with a run folder."""
    return partial(quiet_trainer, tmp_path / "run")
