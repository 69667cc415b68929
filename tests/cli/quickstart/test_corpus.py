import json
from itertools import islice

import pytest
from transformers import AutoTokenizer

from tempspec.cli.quickstart import corpus as made_of
from tempspec.cli.quickstart.corpus import (
    docstrings,
    documentation_topics,
    sections,
    stdlib_sources,
    train_tokenizer,
    write_corpus,
)


def texts(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train_characters=300_000, rows=40)


def test_the_sources_are_the_library_alone_without_its_tests():
    names = [name for name, _ in stdlib_sources()]
    assert {"ast.py", "json/decoder.py"} <= set(names)
    assert names == sorted(names)
    assert not any("test" in name.split("/") or "site-packages" in name for name in names)


def test_sections_lose_nothing_but_a_short_rest():
    text = "\n\n".join(f"def f{number}():\n    return {number}" for number in range(9))
    parts = list(sections(text, characters=30))
    assert text.startswith("\n\n".join(parts))
    assert len(text) - len("\n\n".join(parts)) <= 30


def test_held_out_files_share_no_text_with_the_training_files(corpus):
    trained = "\n".join(texts(corpus.train))
    assert 300_000 <= len(trained) <= 600_000
    assert not [part for part in texts(corpus.in_domain) if part in trained]
    assert len(set(texts(corpus.in_domain))) == len(set(texts(corpus.out_domain))) == 40
    assert min(map(len, texts(corpus.in_domain) + texts(corpus.out_domain))) >= 700


def test_the_same_interpreter_gives_the_same_corpus(corpus, tmp_path):
    again = write_corpus(tmp_path, train_characters=300_000, rows=40)
    assert again.train.read_bytes() == corpus.train.read_bytes()
    assert again.in_domain.read_bytes() == corpus.in_domain.read_bytes()
    assert again.out_domain.read_bytes() == corpus.out_domain.read_bytes()


def test_docstrings_stand_in_for_missing_topics(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(made_of.importlib, "import_module", missing)
    stand_in = list(islice(documentation_topics(), 20))
    assert stand_in == list(islice(docstrings(), 20))
    assert all(stand_in)
    assert len(stand_in) == 20


def test_the_tokenizer_loads_by_name_and_round_trips_any_text(corpus):
    tokenizer = AutoTokenizer.from_pretrained(train_tokenizer(corpus.train.parent, vocabulary=512))
    text = "def f(x):\n\treturn  x # é€ 日本 \U0001f600\r\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == 512
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert 0 not in tokenizer(text).input_ids
    assert tokenizer("<|endoftext|>").input_ids == [0]
