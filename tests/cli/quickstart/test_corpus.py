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


def texts(path, column="text"):
    return [json.loads(line)[column] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train_stories=300, rows=40)


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


def test_what_is_held_out_shares_no_text_with_what_is_trained_on(corpus):
    assert len(set(texts(corpus.train))) == 300
    assert set(texts(corpus.train)).isdisjoint(texts(corpus.in_domain))
    assert len(set(texts(corpus.in_domain))) == len(set(texts(corpus.out_domain))) == 40
    assert min(map(len, texts(corpus.out_domain))) >= 700


def test_held_questions_are_about_other_code(corpus):
    asked, held = texts(corpus.questions, "prompt"), texts(corpus.held_questions, "prompt")
    assert (len(set(asked)), len(set(held))) == (400, 40)
    assert set(asked).isdisjoint(held)
    assert all(question.startswith("What does this Python code do?\n\n") for question in (*asked, *held))
    assert max(map(len, (*asked, *held))) < 1100


def test_the_same_interpreter_gives_the_same_corpus(corpus, tmp_path):
    again = write_corpus(tmp_path, train_stories=300, rows=40)
    for one, other in zip(vars(again).values(), vars(corpus).values(), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_docstrings_stand_in_for_missing_topics(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(made_of.importlib, "import_module", missing)
    stand_in = list(islice(documentation_topics(), 20))
    assert stand_in == list(islice(docstrings(), 20))
    assert all(stand_in)
    assert len(stand_in) == 20


def test_the_tokenizer_loads_by_name_and_round_trips_any_text(corpus):
    tokenizer = AutoTokenizer.from_pretrained(train_tokenizer(corpus.train.parent, vocabulary=300))
    text = "def f(x):\n\treturn  x # é€ 日本 \U0001f600\r\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == 300
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert 0 not in tokenizer(text).input_ids
    assert tokenizer("<|endoftext|>").input_ids == [0]
