"""The quickstart's first step: texts to learn and to measure on, and a tokenizer (floor 6).

In-domain text is little stories, out-of-domain text is this Python's own documentation. Questions about its library's
sources are for models that can answer. Stories are the same everywhere; the rest is the same with the same interpreter.
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

from tempspec.cli.quickstart.stories import stories
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
_QUESTION = "What does this Python code do?\n\n{}"
_QUESTION_CHARACTERS = 240


def main(folder: str) -> None:
    """Write the corpus and train the tokenizer on it, as `python -m tempspec.cli.quickstart.corpus FOLDER`.

    Args:
        folder: where to; the tokenizer is put into its subfolder `tokenizer`.
    """
    write_corpus(folder)
    train_tokenizer(folder)
    size = (Path(folder) / "train.jsonl").stat().st_size / 1e6
    print(f"    {size:.1f} MB of little stories, two held-out sets, and questions about Python code, in {folder}")


@dataclass(frozen=True)
class CorpusPaths:
    """The files of a corpus, JSON Lines with a `text` column; those of questions with a `prompt` column.

    Attributes:
        train: stories, one per row.
        in_domain: other stories.
        out_domain: sections of documentation topics.
        questions: what one could ask a model about library sources.
        held_questions: such questions about other files.
    """

    train: Path
    in_domain: Path
    out_domain: Path
    questions: Path
    held_questions: Path


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


def write_corpus(folder: str | Path, *, train_stories: int = 4000, rows: int = 256, seed: int = 0) -> CorpusPaths:
    """Write the corpus.

    Args:
        folder: where to; made when missing.
        train_stories: how many to train on.
        rows: at most so many rows in each of the files that are measured on.
        seed: another seed has other stories, and holds out other files.

    Raises:
        UserError: this Python has no library sources, or the folder cannot be written.
    """
    root = Path(folder)
    names = ("train", "in_domain", "out_domain", "questions", "held_questions")
    paths = CorpusPaths(*(root / f"{name}.jsonl" for name in names))
    told = stories(seed)
    _write(paths.train, "text", islice(told, train_stories))
    _write(paths.in_domain, "text", islice(told, rows))
    topics = sorted(documentation_topics(), key=lambda text: unit_interval(text, seed))
    _write(paths.out_domain, "text", islice(_round_robin(topics, _SECTION_CHARACTERS), rows))
    kept, held_out = _split_sources(seed)
    _write(paths.questions, "prompt", islice(_questions(kept), 10 * rows))
    _write(paths.held_questions, "prompt", islice(_questions(held_out), rows))
    return paths


def _split_sources(seed: int, held_out: float = 0.05) -> tuple[list[str], list[str]]:
    """Most library sources, and those of the files that are held out.

    Raises:
        UserError: this Python has none.
    """
    files = sorted(stdlib_sources(), key=lambda file: unit_interval(file[0], seed + 1))
    held = [text for name, text in files if unit_interval(name, seed) < held_out]
    kept = [text for name, text in files if unit_interval(name, seed) >= held_out]
    if not held or not kept:
        raise UserError(
            f"expected the standard library's sources in {sysconfig.get_path('stdlib')}, got {len(files)} files; "
            "use a Python installed with its library as .py files"
        )
    return kept, held


def _questions(sources: list[str]) -> Iterator[str]:
    """A question about each section, those of all files in turn."""
    return (_QUESTION.format(part) for part in _round_robin(sources, _QUESTION_CHARACTERS) if len(part) < 1000)


def train_tokenizer(folder: str | Path, vocabulary: int = 512) -> Path:
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


def _round_robin(texts: list[str], characters: int) -> Iterator[str]:
    """The first section of every text, then the second of every text, and so on: a limit leaves no text out."""
    parts = [list(sections(text, characters)) for text in texts]
    for row in zip_longest(*parts):
        yield from (section for section in row if section is not None)


def _write(path: Path, column: str, texts: Iterable[str]) -> None:
    """Write rows, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({column: text}) + "\n" for text in texts)
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def _texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line)["text"] for line in file)


if __name__ == "__main__":
    main(sys.argv[1])
