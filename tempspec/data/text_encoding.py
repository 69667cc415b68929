"""How text becomes rows of tokens, and where encoded corpora are kept (floor 5)."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tempspec.data.cache import default_cache_dir
from tempspec.data.corpora import Corpora
from tempspec.data.encoding import Encoder
from tempspec.data.rows import RowOptions
from tempspec.errors import UserError
from tempspec.models.loading import load_tokenizer

__all__ = ["TextEncoding"]


class TextEncoding:
    """Encodes corpora and prompts by one tokenizer.

    Args:
        path: the tokenizer's folder or hub name; None where nobody has named one.
        max_skipped: the largest share of a corpus' rows that may be left out because they cannot be used.
        max_length: the most tokens of a row.
        pack: join documents to full rows; otherwise each is a row of its own, cut to `max_length`.
        pack_attention: `separate` keeps the documents of a row from each other, in attention and positions, as if each
            was a row of its own; `across` lets a document see those before it.
        collapse_whitespace: turn every run of whitespace into one space, for vocabularies without a newline.
        add_bos: put BOS before documents and prompts even where the tokenizer does not.
        encoding_workers: processes that encode the corpora; null chooses.
        cache_dir: where encoded corpora are kept; `$XDG_CACHE_HOME/tempspec` by default.
        tokenizer_revision: the tokenizer's branch, tag or commit on the hub.
        trust_remote_code: run the code that a tokenizer brings along.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        path: str | None,
        max_skipped: float,
        *,
        max_length: int = 256,
        pack: bool = True,
        pack_attention: Literal["separate", "across"] = "separate",
        collapse_whitespace: bool = False,
        add_bos: bool = False,
        encoding_workers: int | None = None,
        cache_dir: str | None = None,
        tokenizer_revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if max_length < 2:
            raise UserError(f"data.max_length must be 2 or more, got {max_length}")
        if encoding_workers is not None and encoding_workers < 1:
            raise UserError(f"data.encoding_workers must be 1 or more, got {encoding_workers}")
        self.path = path
        self.max_skipped = max_skipped
        self.rows = RowOptions(max_length, pack)
        self.separate = pack_attention == "separate"
        self.collapse_whitespace = collapse_whitespace
        self.add_bos = add_bos
        self.workers = encoding_workers
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self.revision = tokenizer_revision
        self.trust_remote_code = trust_remote_code

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer.

        Raises:
            UserError: nobody has named one, or it cannot be loaded.
        """
        if self.path is None:
            raise UserError("data.tokenizer is missing; give a tokenizer's folder or hub name")
        return load_tokenizer(self.path, revision=self.revision, trust_remote_code=self.trust_remote_code)

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer with these options."""
        return Encoder(self.tokenizer, self.collapse_whitespace, self.add_bos)

    @cached_property
    def corpora(self) -> Corpora:
        """Encoded sets of corpora."""
        return Corpora(
            self.encoder, self.rows, self.cache_dir, max_skipped=self.max_skipped, encoding_workers=self.workers
        )
