"""The one LightningDataModule: text for training and validation, prompts for decoding."""

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from tempspec.data.batches import Collate, EncodedSets
from tempspec.data.cache import default_cache_dir
from tempspec.data.corpora import Corpora, Side
from tempspec.data.encoding import Encoder
from tempspec.data.prompts import Prompt, PromptSource, read_prompts
from tempspec.data.rows import RowOptions
from tempspec.data.sampling import ResumableLoader, ShardSampler, Slot, work_loader
from tempspec.data.sources import TEMPERATURE, Source
from tempspec.errors import UserError
from tempspec.models.loading import load_tokenizer

HELD_OUT = "train-held-out"
"""The name of the validation set that is split off the training data."""


class TextDataModule(LightningDataModule):
    """Corpora, named validation sets and named prompt sets over one tokenizer.

    Documents (`text`) are packed to rows of `max_length` with EOS between them; attention runs across documents, there
    is no mask between them. Of pairs and conversations the loss sees the response alone.

    Args:
        tokenizer: a folder or a hub name; the target's by default.
        train: the training corpus, or several.
        validation: named validation sets.
        validation_fraction: without `validation`, the share of the training rows that is held out as the set
            `train-held-out`, chosen by content; 0 for none.
        test: named test sets; the validation sets by default.
        prompts: named prompt sets for predict and generate.
        max_length: the most tokens of a row.
        batch_size: rows of a training batch, on each device.
        eval_batch_size: rows of a validation or test batch, on each device; `batch_size` by default.
        num_workers: worker processes of a loader.
        pack: join documents to full rows; otherwise each is a row of its own, cut to `max_length`.
        fold_whitespace: turn every run of whitespace into one space, for vocabularies without a newline.
        add_bos: put BOS before documents and prompts even where the tokenizer does not.
        seed: of the held-out rows and of the shuffling.
        cache_dir: where encoded corpora are kept; `$XDG_CACHE_HOME/tempspec` by default.
        tokenizer_revision: the tokenizer's branch, tag or commit on the hub.
        trust_remote_code: run the code that a tokenizer brings along.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        train: Source | list[Source] | None = None,
        validation: dict[str, Source] | None = None,
        validation_fraction: float = 0.05,
        test: dict[str, Source] | None = None,
        prompts: dict[str, PromptSource] | None = None,
        max_length: int = 256,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        pack: bool = True,
        fold_whitespace: bool = False,
        add_bos: bool = False,
        seed: int = 0,
        cache_dir: str | None = None,
        tokenizer_revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer_path = tokenizer
        self.tokenizer_revision = tokenizer_revision
        self.trust_remote_code = trust_remote_code
        self.train_sources = [train] if isinstance(train, Source) else list(train or [])
        self.validation_sources = dict(validation or {})
        self.test_sources = dict(test or {})
        self.prompt_sources = dict(prompts or {})
        self.validation_fraction = validation_fraction
        self.row_options = RowOptions(max_length, pack)
        self.fold_whitespace = fold_whitespace
        self.add_bos = add_bos
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self._train: datasets.Dataset
        self._validation: list[datasets.Dataset] = []
        self._test: list[datasets.Dataset] = []
        self._ready: set[str] = set()
        self._check_options()

    @property
    def max_length(self) -> int:
        """The most tokens of a row."""
        return self.row_options.max_length

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def validation_names(self) -> list[str]:
        """The validation sets, in the order that a batch's `set_index` counts."""
        return list(self.validation_sources) or ([HELD_OUT] if self._splits else [])

    @property
    def test_names(self) -> list[str]:
        """The test sets, in the order that a test batch's `set_index` counts."""
        return list(self.test_sources) or self.validation_names

    @property
    def generation_temperatures(self) -> list[float]:
        """The temperatures that the training rows say they were sampled at, NaN for those that do not; after setup."""
        found = self._train.unique(TEMPERATURE)
        return sorted(value for value in found if value == value) + [math.nan] * any(value != value for value in found)

    @property
    def train_rows(self) -> datasets.Dataset:
        """The encoded training rows, by the numbers that a batch's `row` has; after setup."""
        return self._train

    def in_order(self, start: int) -> DataLoader[Any]:
        """The training rows from a number on, in their order, on this process alone."""
        rows = EncodedSets([self._train])
        order = [Slot(row, False) for row in range(start, len(rows))]
        return DataLoader(rows, sampler=order, batch_size=self.eval_batch_size, collate_fn=self._collate())

    def sources(self, stage: str) -> dict[str, list[Source]]:
        """What a stage may read, by names such as `train`, `validation/code`, `prompts/chat`.

        Args:
            stage: Lightning's name of it: fit, validate, test or predict.
        """
        if stage == "predict":
            return {f"prompts/{name}": [source] for name, source in self.prompt_sources.items()}
        named = {f"validation/{name}": [source] for name, source in self.validation_sources.items()}
        if stage == "test":
            named |= {f"test/{name}": [source] for name, source in self.test_sources.items()}
        return named | ({"train": self.train_sources} if self.train_sources else {})

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        if self.tokenizer_path is None:
            raise UserError("data.tokenizer is missing; give a tokenizer's folder or hub name")
        return load_tokenizer(
            self.tokenizer_path, revision=self.tokenizer_revision, trust_remote_code=self.trust_remote_code
        )

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer with this module's options."""
        return Encoder(self.tokenizer, self.fold_whitespace, self.add_bos)

    def prompt_sets(self) -> dict[str, list[Prompt]]:
        """The prompt sets by name, read at the first call.

        Raises:
            UserError: there is none, one is empty, or a file is broken.
        """
        if not self.prompt_sources:
            raise UserError(
                "data.prompts is empty; name at least one prompt set, such as `prompts: {chat: {path: ...}}`"
            )
        return self._prompts

    @cached_property
    def _prompts(self) -> dict[str, list[Prompt]]:
        cache = self.cache_dir / "hub"
        return {name: read_prompts(name, source, self.encoder, cache) for name, source in self.prompt_sources.items()}

    # -- Lightning's hooks --------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Encode what this run needs, on one process of a machine, so that the others find it in the cache."""
        self.setup(self._stage())

    def setup(self, stage: str) -> None:
        """Take up what a stage needs: `fit`, `validate`, `test`, or `predict` (prompts alone).

        Raises:
            UserError: the stage's data are not configured, or not as they should be.
        """
        if stage in self._ready:
            return
        if stage == "fit":
            self._train = self._train_set()
            self._validation = self._named_sets(self.validation_sources) or self._held_out_sets()
        elif stage == "validate":
            self._validation = self._named_sets(self.validation_sources) or self._held_out_sets()
            self._require(self._validation, "validation")
        elif stage == "test":
            self._test = self._named_sets(self.test_sources or self.validation_sources) or self._held_out_sets()
            self._require(self._test, "test")
        else:
            self.prompt_sets()
        self._ready.add(stage)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled rows of all training corpora; resumes within an epoch."""
        rows = EncodedSets([self._train])
        return ResumableLoader(
            rows,
            sampler=self._sampler(len(rows), shuffle=True),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self._collate(),
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader over all validation sets; none where there is no such set."""
        return [self._eval_loader(self._validation)] if self._validation else []

    def test_dataloader(self) -> DataLoader[Any]:
        """One loader over all test sets."""
        return self._eval_loader(self._test)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The module's work list over the prompt sets, pass by pass; processes take of it as they have time."""
        assert self.trainer is not None
        return work_loader(self.trainer.lightning_module.work(self.prompt_sets()))  # type: ignore[operator]

    # -- parts --------------------------------------------------------------------------------------------------------

    @cached_property
    def _corpora(self) -> Corpora:
        return Corpora(self.encoder, self.row_options, self.cache_dir)

    @property
    def _splits(self) -> bool:
        """Whether the validation set is held out from the training data."""
        return bool(self.train_sources) and not self.validation_sources and self.validation_fraction > 0

    def _train_set(self) -> datasets.Dataset:
        self._require(self.train_sources, "train")
        return self._corpora.encode("train", self.train_sources, self._side("kept"))

    def _held_out_sets(self) -> list[datasets.Dataset]:
        side = self._side("held-out")
        return [self._corpora.encode(HELD_OUT, self.train_sources, side)] if side else []

    def _named_sets(self, sources: dict[str, Source]) -> list[datasets.Dataset]:
        return [self._corpora.encode(name, [source]) for name, source in sources.items()]

    def _side(self, side: Literal["kept", "held-out"]) -> Side | None:
        return Side(side, self.validation_fraction, self.seed) if self._splits else None

    def _eval_loader(self, sets: list[datasets.Dataset]) -> DataLoader[Any]:
        rows = EncodedSets(sets)
        return DataLoader(
            rows,
            sampler=self._sampler(len(rows)),
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            collate_fn=self._collate(),
            generator=torch.Generator(),
        )

    def _collate(self) -> Collate:
        tokens = self.tokenizer
        return Collate(next(i for i in (tokens.pad_token_id, tokens.eos_token_id, 0) if i is not None))

    def _sampler(self, rows: int, *, shuffle: bool = False) -> ShardSampler:
        """This process' share of some rows, among the processes that Lightning started."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return ShardSampler(rows, rank=rank, world=world, shuffle=shuffle, seed=self.seed)

    def _stage(self) -> str:
        function = self.trainer.state.fn if self.trainer else None
        return function.value if function else "fit"

    def _require(self, value: object, name: str) -> None:
        if not value:
            raise UserError(f"data.{name} is missing, and this command needs it; give it a source with a path")

    def _check_options(self) -> None:
        """Refuse numbers that no loader could take.

        Raises:
            UserError: an option is out of its range.
        """
        checks = (
            ("max_length", self.row_options.max_length, self.row_options.max_length >= 2, "2 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("eval_batch_size", self.eval_batch_size, self.eval_batch_size >= 1, "1 or more"),
            ("num_workers", self.num_workers, self.num_workers >= 0, "0 or more"),
            ("validation_fraction", self.validation_fraction, 0 <= self.validation_fraction < 1, "in [0, 1)"),
        )
        for name, value, fine, expected in checks:
            if not fine:
                raise UserError(f"data.{name} must be {expected}, got {value}")
