import json
import math
from collections import Counter
from itertools import chain

import datasets
import numpy as np
import pytest

from tempspec.data.encoding import Encoder, PromptResponse
from tempspec.data.packing import pack
from tempspec.data.rows import BEYOND, EncodingReport, RowOptions, encode_rows
from tempspec.data.skipped import Skipped
from tempspec.data.sources import Source
from tempspec.data.turns import EMPTY
from tempspec.errors import UserError
from tempspec.models.digests import tokenizer_digest
from tests.data import templates
from tests.data.templates import qwen_like


def encoded(rows, encoder, source=None, *, max_length=32, pack=True, workers=None):
    report = EncodingReport()
    dataset = datasets.Dataset.from_list(rows)
    options = RowOptions(max_length, pack)
    tables = encode_rows(dataset, source or Source("here"), encoder, options, report, workers)
    return [row for table in tables for row in table.to_pylist()], report


def blocks_of(documents, *rest, **options):
    return list(pack([np.array(document) for document in documents], *rest, **options))


def talk(*said):
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    return {"messages": json.dumps(turns)}


@pytest.mark.parametrize("length", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("sizes", [[1], [3, 4], [5, 1, 1, 9], [20]])
def test_packing_loses_no_token_and_fills_all_but_one_block(length, sizes):
    documents = [list(range(100 * number, 100 * number + size)) for number, size in enumerate(sizes)]
    blocks = blocks_of(documents, length)
    assert list(chain(*(block.ids.tolist() for block in blocks))) == list(chain(*documents))
    assert all(len(block.ids) == length for block in blocks[:-1])
    assert 1 <= len(blocks[-1].ids) <= length


@pytest.mark.parametrize("length", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("sizes", [[1], [3, 4], [5, 1, 1, 9], [20]])
def test_a_block_says_where_its_documents_start(length, sizes):
    documents = [list(range(100 * number, 100 * number + size)) for number, size in enumerate(sizes)]
    for block in blocks_of(documents, length):
        begins = {place for place, token in enumerate(block.ids) if token % 100 == 0}
        assert block.starts == sorted(begins | {0})
        assert block.learned.tolist() == [place not in block.starts for place in range(len(block.ids))]


def test_a_boundary_token_is_not_doubled():
    (block,) = blocks_of([[0, 1, 0], [0, 2, 0]], 9, boundary=0)
    assert (block.ids.tolist(), block.starts) == ([0, 1, 0, 2, 0], [0, 2])
    assert block.learned.tolist() == [False, True, True, True, True]
    blocks = blocks_of([[0, 1, 0], [0, 2, 0]], 3, boundary=0)
    assert [block.ids.tolist() for block in blocks] == [[0, 1, 0], [0, 2, 0]]


def test_packed_rows_learn_what_rows_of_their_own_do(tokenizer, sentences):
    texts = [sentences(number) for number in range(20)]
    rows, report = encoded([{"text": text} for text in texts], Encoder(tokenizer))
    assert list(chain(*(row["input_ids"] for row in rows))) == list(chain(*Encoder(tokenizer).documents(texts)))
    bos = tokenizer.bos_token_id
    for row in rows:  # every token but a document's first, which answers nothing
        firsts = {0} | {place for place, token in enumerate(row["input_ids"]) if token == bos}
        assert row["starts"] == sorted(firsts)
        assert row["loss_mask"] == [place not in firsts for place in range(len(row["input_ids"]))]
    learned = sum(sum(row["loss_mask"]) for row in rows)
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert report == EncodingReport(read=20, rows=len(rows), tokens=tokens, learned=learned)


def test_unpacked_documents_are_rows_of_their_own_cut_to_length(tokenizer, sentences):
    texts = ["the fox", sentences(1) * 9]
    rows, report = encoded([{"text": text} for text in texts], Encoder(tokenizer), pack=False)
    assert [row["input_ids"] for row in rows] == [ids[:32] for ids in Encoder(tokenizer).documents(texts)]
    assert all(row["starts"] == [0] for row in rows)
    whole = Encoder(tokenizer).documents(texts)[1]
    assert (report.truncated, report.cut) == (1, len(whole) - 32)


def test_documents_of_different_temperatures_share_no_row(tokenizer, sentences):
    temperatures = [None, 0.7, None, 1.0, 0.7]
    data = [{"text": sentences(n), "generation_temperature": t} for n, t in enumerate(temperatures)]
    rows, _ = encoded(data, Encoder(tokenizer), max_length=1000)
    assert len(rows) == 3
    assert math.isnan(rows[0]["generation_temperature"])
    assert [row["generation_temperature"] for row in rows[1:]] == pytest.approx([0.7, 1.0])
    assert rows[1]["input_ids"] == list(chain(*Encoder(tokenizer).documents([sentences(1), sentences(4)])))


@pytest.mark.parametrize("separator", ["", "\n", " Answer:"])
def test_the_mask_of_a_pair_begins_where_the_response_does(tokenizer, separator):
    encoder = Encoder(tokenizer)
    pairs = [{"prompt": "the fox", "response": " ran over"}, {"prompt": "a red hill", "response": " slept"}]
    rows, _ = encoded(pairs, encoder, Source("here", separator=separator))
    for row, pair in zip(rows, pairs, strict=True):
        (prompt,) = encoder.prompts([pair["prompt"] + separator])
        (whole,) = encoder.documents([pair["prompt"] + separator + pair["response"]])
        learned = row["loss_mask"].index(True)
        assert row["input_ids"] == whole
        assert row["loss_mask"] == [False] * learned + [True] * (len(whole) - learned)
        assert encoder.text(whole[learned:]) == pair["response"]
        assert whole[:learned] == prompt


def test_pairs_are_cut_to_length_or_dropped_without_a_response(tokenizer, sentences):
    pairs = [
        {"prompt": "the", "response": "fox"},
        {"prompt": "the", "response": sentences(1) * 9},
        {"prompt": sentences(1) * 9, "response": "the"},
    ]
    rows, report = encoded(pairs, Encoder(tokenizer))
    assert [len(row["input_ids"]) for row in rows] == [report.tokens - 32, 32]
    assert (report.read, report.rows, report.truncated, report.dropped) == (3, 2, 2, 1)
    assert all(any(row["loss_mask"]) for row in rows)


def test_rows_of_one_prompt_share_their_key_and_no_others_do(tokenizer):
    pairs = [{"prompt": prompt, "response": response} for prompt in ("fox", "hill") for response in ("ran", "fell")]
    keys = [row["key"] for row in encoded(pairs, Encoder(tokenizer))[0]]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    assert all(0 <= key < 2**63 for key in keys)


def test_a_conversation_is_keyed_by_what_comes_before_the_answer(chat, template):
    turns = [
        [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": text}] for text in ("ran", "fell")
    ]
    rows, _ = encoded([{"messages": json.dumps(each)} for each in turns], Encoder(chat(template)))
    assert rows[0]["key"] == rows[1]["key"]
    assert rows[0]["input_ids"] != rows[1]["input_ids"]


def test_rows_of_one_prompt_share_their_key_whatever_follows():
    pairs = [{"prompt": "the fox\n", "response": response} for response in ("ran", "\nhill", "\n\na")]
    rows, _ = encoded(pairs, Encoder(qwen_like()))
    talks = [talk("the fox", response) for response in ("ran", "\nhill", "\n\na")]
    chats, _ = encoded(talks, Encoder(qwen_like()))
    assert len({row["key"] for row in rows}) == len({row["key"] for row in chats}) == 1


def test_broken_conversations_are_counted_with_their_lines(jsonl):
    rows = [
        talk("the fox", "ran") | {"line": 4},
        talk("the fox") | {"line": 7},
        talk("the fox", "") | {"line": 8},
        talk("a") | {"line": 9},
    ]
    path = jsonl(rows)
    kept, report = encoded(rows, Encoder(qwen_like()), Source(path))
    assert len(kept) == report.rows == 1
    assert report.unusable == Skipped(
        Counter({"the last turn is not the assistant's": 2}),
        f"{path} line 7: the last turn is not the assistant's (got 'user')",
    )
    assert (report.dropped, report.turns, report.unlearned) == (1, 2, {EMPTY: 1})
    assert str(report).endswith(
        "in 1 of 2 assistant turns (1 dropped: nothing left to learn; 1 turns with nothing to learn; "
        "skipped: 2 the last turn is not the assistant's)"
    )


def test_a_template_that_refuses_everything_is_not_tried_on_all():
    rows = [talk("the fox", "ran")] * 1001
    with pytest.raises(UserError, match=r"prompt differently .*; so it is with the first 32 rows"):
        encoded(rows, Encoder(qwen_like(templates.R1)))


def test_a_row_without_a_line_is_named_by_its_number():
    _, report = encoded([talk("the fox", "ran"), talk("the fox")], Encoder(qwen_like()))
    assert report.first == "here row 2: the last turn is not the assistant's (got 'user')"


def test_answers_that_fit_are_kept_of_a_conversation_that_is_cut():
    (row,), report = encoded([talk("the", "fox", "a", "red hill " * 20)], Encoder(qwen_like()), max_length=20)
    assert len(row["input_ids"]) == 20
    assert (report.rows, report.truncated, report.dropped, report.turns) == (1, 1, 0, 2)
    (row,), report = encoded([talk("the", "fox", "red hill " * 20, "a")], Encoder(qwen_like()), max_length=20)
    assert sum(row["loss_mask"]) == report.learned < 8
    assert report.unlearned == {BEYOND: 1}


def test_text_that_was_cut_gets_no_eos(tokenizer, chat):
    eos = tokenizer.eos_token_id
    texts = [{"text": "the fox", "finish": finish} for finish in ("stop", "length", None)]
    pairs = [{"prompt": "the", "response": " fox", "finish": finish} for finish in ("stop", "length", None)]
    for rows in (texts, pairs):
        made, _ = encoded(rows, Encoder(tokenizer), pack=False)
        assert [row["input_ids"][-1] == eos for row in made] == [True, False, True]
    talks = [talk("the", "fox") | {"finish": finish} for finish in ("stop", "length")]
    made, _ = encoded(talks, Encoder(qwen_like()))
    assert sum(made[0]["loss_mask"]) == sum(made[1]["loss_mask"]) + 1


def test_exact_ids_are_taken_where_a_row_has_them(tokenizer):
    row = {"prompt": "the", "response": " fox", "prompt_ids": [5], "response_ids": [6, 7]}
    rows = [row | {"tokenizer": digest} for digest in (tokenizer_digest(tokenizer), "another", None)]
    made, _ = encoded(rows, Encoder(tokenizer))
    (pair,) = Encoder(tokenizer).pairs([PromptResponse("the", " fox")])
    assert [row["input_ids"] for row in made] == [[5, 6, 7], pair.ids.tolist(), pair.ids.tolist()]


def test_tools_of_a_row_reach_the_template():
    tools = [{"type": "function", "function": {"name": "over", "parameters": {}}}]
    rows = [talk("the fox", "ran") | {"tools": given} for given in (None, json.dumps(tools))]
    encoder = Encoder(qwen_like(templates.QWEN))
    made, _ = encoded(rows, encoder, max_length=1000)
    messages = json.loads(rows[0]["messages"])
    for row, given in zip(made, (None, tools), strict=True):
        expected = encoder.tokenizer.apply_chat_template(messages, tools=given, return_dict=True)["input_ids"]
        assert row["input_ids"] == expected


@pytest.mark.parametrize("form", ["text", "messages"])
def test_two_processes_make_the_rows_of_one(form, sentences):
    said = [{"text": sentences(number)} for number in range(600)]
    rows = said if form == "text" else [talk(row["text"], row["text"]) for row in said] + [talk("a")]
    alone, report = encoded(rows, Encoder(qwen_like()), workers=1)
    shared, other = encoded(rows, Encoder(qwen_like()), workers=2)
    assert repr(shared) == repr(alone)  # a temperature that is not known is no number
    assert other == report
