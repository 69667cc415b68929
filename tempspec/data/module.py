"""The one LightningDataModule: text for training and validation, prompts for decoding (floor 5)."""

import math
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from tempspec.data.batches import STARTS, Collate, EncodedSets
from tempspec.data.clock import at_the_time_of
from tempspec.data.corpora import Side
from tempspec.data.encoding import Encoder
from tempspec.data.grouping import LengthGroups, Padding, PromptGroups, lengths
from tempspec.data.loaders import Fetched, ResumableLoader, ShardSampler, work_loader
from tempspec.data.prompts import Prompt, PromptSource, read_prompts
from tempspec.data.sources import TEMPERATURE, Source, named_sources, source_of
from tempspec.data.text_encoding import TextEncoding
from tempspec.errors import UserError
from tempspec.files import stage_folder

HELD_OUT = "train-held-out"
"""The name of the validation set that is split off the training data."""

_LARGE = 10_000
"""Rows from which on a loader has workers of its own accord: they take seconds to start, and a batch a millisecond."""
_WORKERS = 4


class TextDataModule(LightningDataModule):
    """Corpora, named validation sets and named prompt sets over one tokenizer.

    Documents (`text`) are packed to rows of `max_length` with EOS between them. In pairs and
    conversations only the response counts in the loss.

    Args:
        tokenizer: a folder or a hub name; the target's by default.
        train: the training corpus, or several; here and below, a plain path is enough for a corpus without options.
        validation: named validation sets.
        validation_fraction: without `validation`, the share of the training rows that is held out as the set
            `train-held-out`, chosen by content: at least one row if there are two; 0 for none.
        max_held_out: the most rows that are held out, of all training corpora together; the others are trained on.
        max_skipped: the largest share of a corpus' rows that may be left out because they cannot be used.
        test: named test sets; the validation sets by default.
        prompts: named prompt sets for predict.
        generation_prompts: named prompt sets for generate; those of `prompts` by default.
        batch_size: rows of a training batch, on each device.
        eval_batch_size: rows of a validation or test batch, on each device; `batch_size` by default.
        group_by_length: so many batches are sorted by length together, so that the rows of a batch have like lengths;
            at most a quarter of an epoch. The batches come in random order. 0 for random batches.
        pad_to_multiple: the length of a batch is rounded up to a multiple of this, or of a sixteenth of `max_length` if
            that is less; 1 for the length of its longest row.
        num_workers: worker processes of a loader; null chooses: none for small corpora and on few cores.
        seed: of the held-out rows and of the shuffling.
        encoding: the options of `tempspec.data.text_encoding.TextEncoding`, such as `max_length` and `pack`.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        train: Source | str | list[Source | str] | None = None,
        validation: dict[str, Source | str] | None = None,
        validation_fraction: float = 0.05,
        max_held_out: int = 512,
        max_skipped: float = 0.01,
        test: dict[str, Source | str] | None = None,
        prompts: dict[str, PromptSource | str] | None = None,
        generation_prompts: dict[str, PromptSource | str] | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        group_by_length: int = 256,
        pad_to_multiple: int = 64,
        num_workers: int | None = None,
        seed: int = 0,
        **encoding: Any,
    ) -> None:
        super().__init__()
        self.encoding = TextEncoding(tokenizer, max_skipped, **encoding)
        trains = [train] if isinstance(train, Source | str) else list(train or [])
        self.train_sources = [source_of(given, Source) for given in trains]
        self.validation_sources = named_sources(validation, Source)
        self.test_sources = named_sources(test, Source)
        self.prompt_sources = named_sources(prompts, PromptSource)
        self._generation_sources = named_sources(generation_prompts, PromptSource)
        self.validation_fraction = validation_fraction
        self.max_held_out = max_held_out
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.group_by_length = group_by_length
        self.padding = Padding(self.max_length, pad_to_multiple)
        self.num_workers = num_workers
        self.seed = seed
        self._train: datasets.Dataset
        self._validation: list[datasets.Dataset] = []
        self._test: list[datasets.Dataset] = []
        self._prompts: dict[str, list[Prompt]] = {}
        self._none_held_out = False
        self._ready: set[str] = set()
        self._check_options()

    @property
    def max_length(self) -> int:
        """The most tokens of a row."""
        return self.encoding.rows.max_length

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def validation_names(self) -> list[str]:
        """The validation sets, in the order that a batch's `set_index` counts."""
        return list(self.validation_sources) or ([HELD_OUT] if self._splits and not self._none_held_out else [])

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

    @property
    def train_lengths(self) -> np.ndarray:
        """The tokens of each training row, int64 `[R]`; after setup."""
        return lengths(self._train)

    @property
    def packed(self) -> bool:
        """Whether some row that was set up holds several documents that are to be kept from each other."""
        sets = [*([self._train] if hasattr(self, "_train") else []), *self._validation, *self._test]
        return self.encoding.separate and any(
            STARTS in rows.column_names and lengths(rows, STARTS).max(initial=0) > 1 for rows in sets
        )

    def in_windows(self, start: int, window: int) -> DataLoader[Any]:
        """The training rows on this process alone, window by window, within each the longest first.

        Args:
            start: the first row; the number of one that begins a window.
            window: rows whose order may change, so that those of a batch are of like length.
        """
        size = self.train_lengths
        batches = [
            [Fetched(int(row), False) for row in order[first : first + self.eval_batch_size]]
            for begin in range(start, len(size), window)
            for order in [begin + (-size[begin : begin + window]).argsort(kind="stable")]
            for first in range(0, len(order), self.eval_batch_size)
        ]
        return DataLoader(EncodedSets([self._train]), batch_sampler=batches, collate_fn=self._collate())

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

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.encoding.tokenizer

    @property
    def encoder(self) -> Encoder:
        """The tokenizer with this module's options."""
        return self.encoding.encoder

    def begin_generation(self) -> None:
        """Let the prompt sets be those of generate, where it has its own; before any is read."""
        self.prompt_sources = self._generation_sources or self.prompt_sources

    def prompt_sets(self, folder: str | Path | None = None) -> dict[str, list[Prompt]]:
        """The prompt sets by name, read at the first call.

        Args:
            folder: the stage's, which keeps the date that chat templates write; the trainer's by default.

        Raises:
            UserError: there is none, one is empty, or a file is broken.
        """
        if not self.prompt_sources:
            raise UserError(
                "data.prompts is empty; name at least one prompt set, such as `prompts: {chat: {path: ...}}`"
            )
        if not self._prompts:
            kept = folder or (stage_folder(self.trainer) if self.trainer else None)
            encoder = self.encoder if kept is None else at_the_time_of(kept, self.encoder)
            cache = self.encoding.cache_dir / "hub"
            self._prompts = {
                name: read_prompts(name, source, encoder, cache, self.encoding.max_skipped)
                for name, source in self.prompt_sources.items()
            }
        return self._prompts

    # -- Lightning's hooks --------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Encode what this run needs, on one process of a machine, so that the others find it in the cache."""
        self.setup(self._stage())

    def setup(self, stage: str) -> None:
        """Take up what a stage needs: `fit`, `validate`, `test`, or `predict` (prompts alone).

        Raises:
            UserError: the stage's data are not configured, or not as they should be.
        """
        if self.num_workers is None:
            _drop_advice()
        if stage in self._ready:
            return
        if stage == "fit":
            self._train = self._train_set()
            self._validation = self._named_sets(self.validation_sources) or self._held_out_sets()
        elif stage == "validate":
            self._validation = self._validation or self._named_sets(self.validation_sources) or self._held_out_sets()
            self._require(self._validation, "validation")
        elif stage == "test":
            self._test = self._named_sets(self.test_sources or self.validation_sources) or self._held_out_sets()
            self._require(self._test, "test")
        else:
            self.prompt_sets()
        self._ready.add(stage)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled rows of all training corpora; resumes within an epoch."""
        sampler = self._train_sampler()
        return ResumableLoader(
            EncodedSets([self._train]),
            sampler=sampler,
            batch_size=self.batch_size,
            collate_fn=self._collate(),
            **self._loading(sampler.rows),
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

    @property
    def _splits(self) -> bool:
        """Whether the validation set is held out from the training data."""
        return bool(self.train_sources) and not self.validation_sources and self.validation_fraction > 0

    def _train_set(self) -> datasets.Dataset:
        self._require(self.train_sources, "train")
        return self.encoding.corpora.encode("train", self.train_sources, self._side("kept"))

    def _held_out_sets(self) -> list[datasets.Dataset]:
        side = self._side("held-out")
        if side is None:
            return []
        rows = self.encoding.corpora.encode(HELD_OUT, self.train_sources, side)
        self._none_held_out = not len(rows)
        rank_zero_info(
            f"{HELD_OUT}: nothing is held out, which takes two different rows; name data.validation to validate"
            if self._none_held_out
            else f"{HELD_OUT}: a share of {side.fraction:g} of the training rows (data.validation_fraction), at most "
            f"{self.max_held_out} of them (data.max_held_out)"
        )
        return [] if self._none_held_out else [rows]

    def _named_sets(self, sources: dict[str, Source]) -> list[datasets.Dataset]:
        return [self.encoding.corpora.encode(name, [source]) for name, source in sources.items()]

    def _side(self, side: Literal["kept", "held-out"]) -> Side | None:
        if not self._splits:
            return None
        most = max(1, self.max_held_out // len(self.train_sources))
        return Side(side, self.validation_fraction, self.seed, most)

    def _train_sampler(self) -> ShardSampler:
        """Shuffled rows, in steps of like length; says how much of an epoch is padding."""
        tokens_R = lengths(self._train)
        step = self.batch_size * self._world[1]
        window = min(self.group_by_length, max(1, len(tokens_R) // step // 4)) if self.group_by_length else 0
        sampler = self._sampler(len(tokens_R), shuffle=True, groups=LengthGroups(tokens_R, step, window))
        share = self.padding.share(tokens_R[sampler.order()], self.batch_size, self._world[1])
        rank_zero_info(f"train: {share:.1%} of the positions are padding")
        return sampler

    def _eval_loader(self, sets: list[datasets.Dataset]) -> DataLoader[Any]:
        """Every set in steps of like length, which come in an order of their own: the first few are a fair sample.

        Where the sets are answers to the same prompts, validate and test get those of a prompt one after another: they
        read it once.
        """
        rows = EncodedSets(sets)
        return DataLoader(
            rows,
            sampler=self._sampler(len(rows), groups=self._of_prompts(sets) or self._of_lengths(sets, rows)),
            batch_size=self.eval_batch_size,
            collate_fn=self._collate(),
            generator=torch.Generator(),
            **self._loading(len(rows)),
        )

    def _of_lengths(self, sets: list[datasets.Dataset], rows: EncodedSets) -> LengthGroups:
        tokens_R = np.concatenate([lengths(each) for each in sets])
        step = self.eval_batch_size * self._world[1]
        return LengthGroups(tokens_R, step, len(rows) if self.group_by_length else 0, rows.ends)

    def _of_prompts(self, sets: list[datasets.Dataset]) -> PromptGroups | None:
        """Rows by their prompts, if most of these have several, and one process reads all."""
        if self.trainer is None or self._world[1] > 1 or not self.group_by_length:
            return None
        if self.trainer.state.fn not in ("validate", "test"):
            return None
        key_R = torch.tensor([key for each in sets for key in each["key"]], dtype=torch.int64)
        several = bool(key_R.all()) and len(key_R) >= 2 * len(key_R.unique()) > 0  # packed rows have no prompt: 0
        return PromptGroups(key_R) if several else None

    def _collate(self) -> Collate:
        tokens = self.tokenizer
        pad_id = next(i for i in (tokens.pad_token_id, tokens.eos_token_id, 0) if i is not None)
        return Collate(pad_id, self.padding, apart=self.encoding.separate)

    def _loading(self, rows: int) -> dict[str, Any]:
        """How a loader of so many rows is run."""
        workers = self.num_workers
        if workers is None:
            cores = _cores() // getattr(self.trainer, "num_devices", 1)
            workers = min(_WORKERS, cores // 2) if rows >= _LARGE else 0
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", torch.device("cpu"))
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": device.type == "cuda",
        }

    def _sampler(
        self, rows: int, *, shuffle: bool = False, groups: LengthGroups | PromptGroups | None = None
    ) -> ShardSampler:
        """This process' share of some rows, among the processes that Lightning started."""
        rank, world = self._world
        return ShardSampler(rows, rank=rank, world=world, shuffle=shuffle, seed=self.seed, groups=groups)

    @property
    def _world(self) -> tuple[int, int]:
        """This process' number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

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
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("eval_batch_size", self.eval_batch_size, self.eval_batch_size >= 1, "1 or more"),
            ("num_workers", self.num_workers, (self.num_workers or 0) >= 0, "0 or more"),
            ("group_by_length", self.group_by_length, self.group_by_length >= 0, "0 or more"),
            ("pad_to_multiple", self.padding.multiple, self.padding.multiple >= 1, "1 or more"),
            ("max_held_out", self.max_held_out, self.max_held_out >= 1, "1 or more"),
            ("max_skipped", self.encoding.max_skipped, 0 <= self.encoding.max_skipped <= 1, "in [0, 1]"),
            ("validation_fraction", self.validation_fraction, 0 <= self.validation_fraction < 1, "in [0, 1)"),
        )
        for name, value, fine, expected in checks:
            if not fine:
                raise UserError(f"data.{name} must be {expected}, got {value}")


def _drop_advice() -> None:
    """Silence Lightning's advice on workers, whose number was chosen here; done once, for it shows others anew."""
    text = ".*does not have many workers.*"
    if all(entry[1] is None or getattr(entry[1], "pattern", entry[1]) != text for entry in warnings.filters):
        warnings.filterwarnings("ignore", text)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
