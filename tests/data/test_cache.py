import math
import os
from dataclasses import replace

import pyarrow as pa
import pytest

from tempspec.data.cache import cached, default_cache_dir
from tempspec.data.corpora import Corpora, Side
from tempspec.data.encoding import Encoder
from tempspec.data.rows import ROW as SCHEMA
from tempspec.data.rows import RowOptions
from tempspec.data.sources import Source
from tempspec.errors import UserError

ROW = {"input_ids": [1, 2], "loss_mask": [False, True], "generation_temperature": math.nan, "key": 2**62, "starts": [0]}
TABLE = pa.Table.from_pylist([ROW], schema=SCHEMA)


def counting(calls):
    def produce(report):
        calls.append(report)
        report.rows += 1
        yield TABLE

    return produce


def test_a_hit_equals_the_miss_and_produces_nothing(tmp_path):
    calls: list[object] = []
    missed, first = cached(tmp_path, "k", counting(calls))
    hit, second = cached(tmp_path, "k", counting(calls))
    assert len(calls) == 1
    assert first == second
    for rows in (missed[0], hit[0]):
        assert math.isnan(rows.pop("generation_temperature"))
        assert rows.items() <= ROW.items()


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def broken(report):
        yield TABLE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "k", broken)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*; set data.cache_dir to another"):
        cached(tmp_path / "file" / "below", "k", counting([]))


def test_the_default_folder_follows_the_xdg_standard(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "tempspec"


def test_sets_are_kept_apart_by_everything_that_they_depend_on(
    tmp_path, jsonl, sentences, tokenizer, tokenizer_without_bos
):
    texts = [{"text": sentences(number)} for number in range(30)]
    source, longer = Source(jsonl(texts)), Source(jsonl([*texts, {"text": "the end"}], "longer.jsonl"))
    cache, usual = tmp_path / "cache", RowOptions(32)
    variants = [
        (Encoder(tokenizer), usual, source, None),
        (Encoder(tokenizer_without_bos), usual, source, None),
        (Encoder(tokenizer, collapse_whitespace=True), usual, source, None),
        (Encoder(tokenizer), RowOptions(33), source, None),
        (Encoder(tokenizer), RowOptions(32, pack=False), source, None),
        (Encoder(tokenizer), usual, longer, None),
        (Encoder(tokenizer), usual, source, Side("kept", 0.3, 0)),
        (Encoder(tokenizer), usual, source, Side("held-out", 0.3, 0)),
        (Encoder(tokenizer), usual, source, Side("held-out", 0.3, 1)),
    ]
    for count, (encoder, options, corpus, side) in enumerate(variants, start=1):
        for _ in range(2):
            Corpora(encoder, options, cache).encode("x", [corpus], side)
            assert len(list(cache.glob("*.arrow"))) == count


def test_the_same_content_under_another_name_is_found_again(tmp_path, jsonl, sentences, tokenizer):
    texts = [{"text": sentences(number)} for number in range(5)]
    for name in ("a.jsonl", "b.jsonl"):
        Corpora(Encoder(tokenizer), RowOptions(32), tmp_path / "cache").encode("x", [Source(jsonl(texts, name))])
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


def talks(broken, fine):
    asked = [{"role": "user", "content": "the fox"}]
    answered = [*asked, {"role": "assistant", "content": "ran"}]
    return [{"messages": asked}] * broken + [{"messages": answered}] * fine


def test_rows_that_cannot_be_used_are_left_out_up_to_a_share(tmp_path, jsonl, chat):
    source = Source(jsonl(talks(1, 99)))
    corpora = Corpora(Encoder(chat("plain")), RowOptions(32), tmp_path / "cache")
    for _ in range(2):  # made, then found
        assert len(corpora.encode("x", [source])) == 99
        with pytest.raises(
            UserError, match=r"line 1: the last turn is not .*; 1 of 100 rows cannot be used .*expected at"
        ):
            replace(corpora, max_skipped=0.009).encode("x", [source])


def test_what_sources_and_encoding_skip_is_one_count(tmp_path, jsonl, chat, caplog):
    rows = [*talks(1, 300), {"messages": None}]
    corpora = Corpora(Encoder(chat("plain")), RowOptions(32), tmp_path / "cache")
    with caplog.at_level("INFO"):
        assert len(corpora.encode("x", [Source(jsonl(rows))])) == 300
    assert "302 rows read, 300 kept" in caplog.text
    assert "1 the last turn is not the assistant's" in caplog.text
    assert "1 messages" in caplog.text


def test_a_cut_response_is_read_and_encoded_without_eos(tmp_path, jsonl, tokenizer):
    rows = [{"prompt": "the", "response": " fox", "finish": finish} for finish in ("stop", "length")]
    made = Corpora(Encoder(tokenizer), RowOptions(32), tmp_path / "cache").encode("x", [Source(jsonl(rows))])
    assert [row["input_ids"][-1] == tokenizer.eos_token_id for row in made] == [True, False]
