"""Corpora as encoded sets: read, split, encoded and cached under everything that they depend on (floor 5)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import datasets
import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_info

from tempspec.data.cache import FORMAT, cached
from tempspec.data.digest import digest_value
from tempspec.data.encoding import Encoder
from tempspec.data.rows import EncodingReport, RowOptions, encode_rows
from tempspec.data.skipped import Skipped
from tempspec.data.sources import Source, read, source_digest
from tempspec.data.split import hold_out
from tempspec.errors import UserError
from tempspec.models.digests import tokenizer_digest


@dataclass(frozen=True)
class Side:
    """A side of a deterministic split: `kept` for training or `held-out`; see `hold_out`."""

    side: Literal["kept", "held-out"]
    fraction: float
    seed: int
    most: int | None = None

    def of(self, dataset: datasets.Dataset) -> datasets.Dataset:
        """The rows on this side."""
        return hold_out(dataset, self.fraction, self.seed, self.most)[self.side == "held-out"]


@dataclass(frozen=True)
class Corpora:
    """Makes encoded sets of corpora, or finds them in the cache.

    Args:
        encoder: the tokenizer and its options.
        options: how rows are made.
        cache_dir: where encoded sets and hub data are kept.
        max_skipped: the largest share of rows that may be left out because they cannot be used.
        encoding_workers: processes that encode; None chooses.
    """

    encoder: Encoder
    options: RowOptions
    cache_dir: Path
    max_skipped: float = 0.01
    encoding_workers: int | None = None

    def encode(self, name: str, sources: Sequence[Source], side: Side | None = None) -> datasets.Dataset:
        """The rows of some sources as one set.

        Args:
            name: what to call it in messages.
            sources: the corpora.
            side: one side of each corpus; all of it by default. The held-out one may come out empty.

        Raises:
            UserError: no row is left, too many cannot be used, or a corpus is not as it should be.
        """
        parts = [self._encode_one(source, side) for source in sources]
        whole = side is None or side.side == "kept"
        for source, (_, report) in zip(sources, parts, strict=True):
            rank_zero_info(f"{name}: {source.path}: {report}")
            if whole:  # one bad row is a large share of the few that are held out
                report.unusable.check(report.corpus, self.max_skipped)
        if whole and not any(report.rows for _, report in parts):
            raise UserError(f"{name}: no row to learn from: {parts[0][1]}; {_remedy(side)}")
        return datasets.concatenate_datasets([rows for rows, _ in parts])

    def _encode_one(self, source: Source, side: Side | None) -> tuple[datasets.Dataset, EncodingReport]:
        def produce(report: EncodingReport) -> Iterator[pa.Table]:
            skipped = Skipped()
            dataset = read(source, cache_dir=self.cache_dir / "hub", skipped=skipped)
            report.corpus = len(dataset) + skipped.total
            if side is None or side.side == "kept":
                report.read += skipped.total
                report.skip(skipped)
            rows = side.of(dataset) if side else dataset
            workers, scratch = self.encoding_workers, self.cache_dir
            return encode_rows(rows, source, self.encoder, self.options, report, workers, scratch)

        return cached(self.cache_dir, self._key(source, side), produce)

    def _key(self, source: Source, side: Side | None) -> str:
        encoding = [
            self._tokenizer_digest,
            self.encoder.collapse_whitespace,
            self.encoder.add_bos,
            asdict(self.options),
        ]
        return digest_value([FORMAT, source_digest(source, self.cache_dir / "hub"), encoding, side and asdict(side)])

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.encoder.tokenizer)


def _remedy(side: Side | None) -> str:
    if side is None:
        return "raise data.max_length, or give rows with longer texts"
    return f"data.validation_fraction is {side.fraction}: give more rows, another fraction, or data.validation"
