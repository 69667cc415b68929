import json
import math
from itertools import chain

import datasets
import pytest

from tempspec.data.encoding import Encoder
from tempspec.data.rows import Report, RowOptions, encode_rows, pack
from tempspec.data.sources import Source
from tempspec.errors import UserError


def encoded(rows, encoder, source=None, *, max_length=32, pack=True):
    report = Report()
    dataset = datasets.Dataset.from_list(rows)
    options = RowOptions(max_length, pack)
    return list(encode_rows(dataset, source or Source("here"), encoder, options, report)), report


@pytest.mark.parametrize("length", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("sizes", [[1], [3, 4], [5, 1, 1, 9], [20]])
def test_packing_loses_no_token_and_fills_every_block_but_the_last(length, sizes):
    documents = [list(range(100 * number, 100 * number + size)) for number, size in enumerate(sizes)]
    blocks = list(pack(documents, length))
    assert list(chain(*blocks)) == list(chain(*documents))
    assert all(len(block) == length for block in blocks[:-1])
    assert 1 <= len(blocks[-1]) <= length


def test_a_boundary_token_is_not_doubled():
    assert list(pack([[0, 1, 0], [0, 2, 0]], 9, boundary=0)) == [[0, 1, 0, 2, 0]]
    assert list(pack([[0, 1, 0], [0, 2, 0]], 3, boundary=0)) == [[0, 1, 0], [0, 2, 0]]


def test_packed_rows_hold_the_documents_and_learn_every_token_but_the_first(tokenizer, sentences):
    texts = [sentences(number) for number in range(20)]
    rows, report = encoded([{"text": text} for text in texts], Encoder(tokenizer))
    assert list(chain(*(row["input_ids"] for row in rows))) == list(chain(*Encoder(tokenizer).documents(texts)))
    assert all(row["loss_mask"] == [False] + [True] * (len(row["input_ids"]) - 1) for row in rows)
    assert report == Report(read=20, rows=len(rows), tokens=sum(len(row["input_ids"]) for row in rows))


def test_unpacked_documents_are_rows_of_their_own_cut_to_length(tokenizer, sentences):
    texts = ["the fox", sentences(1) * 9]
    rows, report = encoded([{"text": text} for text in texts], Encoder(tokenizer), pack=False)
    assert [row["input_ids"] for row in rows] == [ids[:32] for ids in Encoder(tokenizer).documents(texts)]
    assert report.truncated == 1


def test_documents_of_different_temperatures_share_no_row(tokenizer, sentences):
    temperatures = [None, 0.7, None, 1.0, 0.7]
    data = [{"text": sentences(n), "generation_temperature": t} for n, t in enumerate(temperatures)]
    rows, _ = encoded(data, Encoder(tokenizer), max_length=1000)
    assert len(rows) == 3
    assert math.isnan(rows[0]["generation_temperature"])
    assert [row["generation_temperature"] for row in rows[1:]] == [0.7, 1.0]
    assert rows[1]["input_ids"] == list(chain(*Encoder(tokenizer).documents([sentences(1), sentences(4)])))


@pytest.mark.parametrize("separator", ["", "\n", " Answer:"])
def test_the_mask_of_a_pair_begins_exactly_where_the_response_does(tokenizer, separator):
    encoder = Encoder(tokenizer)
    pairs = [{"prompt": "the fox", "response": "ran over"}, {"prompt": "a red hill", "response": "slept"}]
    rows, _ = encoded(pairs, encoder, Source("here", separator=separator))
    for row, pair in zip(rows, pairs, strict=True):
        (prompt,) = encoder.prompts([pair["prompt"] + separator])
        (response,) = encoder.responses([pair["response"]])
        assert row["input_ids"] == prompt + response
        assert row["loss_mask"] == [False] * len(prompt) + [True] * len(response)


def test_pairs_are_cut_to_length_and_dropped_without_a_response_token(tokenizer, sentences):
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


def test_a_broken_conversation_is_named_by_its_number(chat):
    asked = [{"role": "user", "content": "the fox"}]
    answered = [*asked, {"role": "assistant", "content": "ran"}]
    with pytest.raises(UserError, match=r"^here: conversation 2: the last turn must be the assistant's"):
        encoded([{"messages": json.dumps(each)} for each in (answered, asked)], Encoder(chat("plain")))
