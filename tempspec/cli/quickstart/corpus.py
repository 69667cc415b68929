"""The quickstart's first step: a corpus from text that every Python carries, and a tokenizer (floor 6).

The text is the library's own sources and its documentation topics.

In-domain text is code, out-of-domain text is English prose about the language. Whole files are held out, so nothing of
a held-out file was trained on. The same interpreter gives the same corpus.
"""

import ast
import importlib
import json
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tempspec.data.digest import unit_interval
from tempspec.errors import UserError

__all__ = ["CorpusPaths", "main", "train_tokenizer", "write_corpus"]

END_OF_TEXT = "<|endoftext|>"

# Installed packages; tests; a bundled editor, demos, installers; generated tables (code pages, topics, build settings).
_LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "encodings",
    "pydoc_data", "__pycache__", "__phello__",
}  # fmt: skip
_GENERATED = ("_sysconfigdata", "_sysconfig_vars", "_osx_support")
_SECTION_CHARACTERS = 800


def main(folder: str) -> None:
    """Write the corpus and train the tokenizer on it, as `python -m tempspec.cli.quickstart.corpus FOLDER`.

    Args:
        folder: where to; the tokenizer is put into its subfolder `tokenizer`.
    """
    write_corpus(folder)
    train_tokenizer(folder)
    size = (Path(folder) / "train.jsonl").stat().st_size / 1e6
    print(f"    {size:.1f} MB of library sources to train on, and two held-out sets, in {folder}")


@dataclass(frozen=True)
class CorpusPaths:
    """The files of a corpus, each JSON Lines with a `text` column.

    Attributes:
        train: library sources, one file per row.
        in_domain: sections of other library sources.
        out_domain: sections of documentation topics.
    """

    train: Path
    in_domain: Path
    out_domain: Path


def stdlib_sources() -> Iterator[tuple[str, str]]:
    """(relative name, text) of this interpreter's library sources, by name; unreadable ones are left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if _LEFT_OUT.isdisjoint(name.parts) and not name.name.startswith(_GENERATED):
            try:
                with tokenize.open(path) as file:
                    yield name.as_posix(), file.read()
            except (OSError, SyntaxError, UnicodeDecodeError):
                continue


def documentation_topics() -> Iterator[str]:
    """The English documentation topics of `help()`; docstrings of the library where an interpreter lacks them."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        yield from docstrings()
        return
    yield from (topics[name] for name in sorted(topics))


def docstrings() -> Iterator[str]:
    """The docstrings of the library's modules, by name; nothing is imported."""
    for _, text in stdlib_sources():
        try:
            documentation = ast.get_docstring(ast.parse(text))
        except (SyntaxError, ValueError):
            continue
        if documentation:
            yield documentation


def sections(text: str, characters: int = _SECTION_CHARACTERS) -> Iterator[str]:
    r"""Cut a text at blank lines, into parts of at least so many characters; a shorter rest is left out.

    >>> list(sections("import os\n\n\ndef f(): ...\n\n\ndef g(): ...\n\nEND", characters=12))
    ['import os\n\n\ndef f(): ...', 'def g(): ...']
    """
    part = ""
    for piece in text.split("\n\n"):
        part = f"{part}\n\n{piece}" if part else piece
        if len(part) >= characters:
            yield part.strip("\n")
            part = ""


def write_corpus(
    folder: str | Path,
    *,
    train_characters: int = 3_000_000,
    rows: int = 256,
    held_out_fraction: float = 0.05,
    seed: int = 0,
) -> CorpusPaths:
    """Write the corpus.

    Args:
        folder: where to; made when missing.
        train_characters: about how much to train on.
        rows: at most so many rows in each of the two evaluation files.
        held_out_fraction: the share of library files that is kept for evaluation.
        seed: another seed trains on, and holds out, other files.

    Raises:
        UserError: this Python has no library sources, or the folder cannot be written.
    """
    files = sorted(stdlib_sources(), key=lambda file: unit_interval(file[0], seed + 1))
    held_out = [text for name, text in files if unit_interval(name, seed) < held_out_fraction]
    kept = [text for name, text in files if unit_interval(name, seed) >= held_out_fraction]
    if not held_out or not kept:
        raise UserError(
            f"expected the standard library's sources in {sysconfig.get_path('stdlib')}, got {len(files)} files; "
            "use a Python installed with its library as .py files"
        )
    root = Path(folder)
    paths = CorpusPaths(root / "train.jsonl", root / "in_domain.jsonl", root / "out_domain.jsonl")
    topics = sorted(documentation_topics(), key=lambda text: unit_interval(text, seed))
    _write(paths.train, _up_to(train_characters, kept))
    _write(paths.in_domain, islice(_round_robin(held_out), rows))
    _write(paths.out_domain, islice(_round_robin(topics), rows))
    return paths


def train_tokenizer(folder: str | Path, vocabulary: int = 2048) -> Path:
    """Train a byte-level BPE on a corpus' `train.jsonl`; returns the tokenizer's folder, `tokenizer` in the corpus'.

    Any text round-trips. BOS, EOS and padding are one token, `<|endoftext|>`, with id 0; it is not put before texts.

    Args:
        folder: the folder of `write_corpus`.
        vocabulary: tokens, at least 257 (the bytes and the end of text).
    """
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rules.train_from_iterator(_texts(Path(folder) / "train.jsonl"), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    destination = Path(folder) / "tokenizer"
    tokenizer.save_pretrained(destination)
    return destination


def _round_robin(texts: list[str]) -> Iterator[str]:
    """The first section of every text, then the second of every text, and so on: a limit leaves no text out."""
    parts = [list(sections(text)) for text in texts]
    for row in zip_longest(*parts):
        yield from (section for section in row if section is not None)


def _up_to(characters: int, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def _write(path: Path, texts: Iterable[str]) -> None:
    """Write rows, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def _texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line)["text"] for line in file)


if __name__ == "__main__":
    main(sys.argv[1])
