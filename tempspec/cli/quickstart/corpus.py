"""`python -m tempspec.cli.quickstart.corpus FOLDER`: the quickstart's first step (floor 6)."""

import sys
from pathlib import Path

from tempspec.data.stdlib_corpus import train_tokenizer, write_corpus

__all__ = ["main"]


def main(folder: str) -> None:
    """Write the corpus and train the tokenizer on it.

    Args:
        folder: where to; the tokenizer is put into its subfolder `tokenizer`.
    """
    write_corpus(folder)
    train_tokenizer(folder)
    size = (Path(folder) / "train.jsonl").stat().st_size / 1e6
    print(f"    {size:.1f} MB of library sources to train on, and two held-out sets, in {folder}")


if __name__ == "__main__":
    main(sys.argv[1])
