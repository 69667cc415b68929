"""What a test of the modules runs: a data module over the files of `pair`, and a trainer."""

import warnings
from pathlib import Path

import lightning.pytorch as pl

from tempspec.data.module import TextDataModule
from tempspec.data.prompts import PromptSource
from tempspec.data.sources import Source


def data_module(pair: Path, cache: Path) -> TextDataModule:
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
        cache_dir=str(cache),
    )


def quiet_trainer(run: Path, **options) -> pl.Trainer:
    """A CPU trainer that says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.Trainer(
            accelerator="cpu",
            default_root_dir=options.pop("default_root_dir", str(run)),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            use_distributed_sampler=False,
            **options,
        )
