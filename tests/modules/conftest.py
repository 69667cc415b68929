"""A real pair on disk: tiny Llamas over a word-level tokenizer, and a corpus that their chain wrote."""

import json
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from tempspec.data.module import TextDataModule
from tempspec.data.prompts import PromptSource
from tempspec.data.sources import Source
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
    return TextDataModule(
        tokenizer=str(pair / "target"),
        train=Source(str(pair / "corpus.jsonl")),
        validation={"held": Source(str(pair / "prompts.jsonl")), "again": Source(str(pair / "prompts.jsonl"))},
        prompts={
            "chat": PromptSource(str(pair / "prompts.jsonl")),
            "few": PromptSource(str(pair / "prompts.jsonl"), limit=2),
        },
        max_length=24,
        batch_size=10,
        cache_dir=str(tmp_path / "cache"),
    )


@pytest.fixture
def trainer(tmp_path):
    """Makes quiet CPU trainers with a run folder."""

    def make(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pl.Trainer(
                accelerator="cpu",
                default_root_dir=options.pop("default_root_dir", str(tmp_path / "run")),
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
                logger=False,
                use_distributed_sampler=False,
                **options,
            )

    return make
