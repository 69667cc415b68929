"""The field's files are read as they are, or refused with what helps."""

import json

import pytest

from tempspec.data.skipped import Skipped
from tempspec.data.sources import Source, form_of, messages_of, read
from tempspec.errors import UserError

ALPACA = [
    {"instruction": "Find the perimeter.", "input": "a = 3, b = 4, c = 5", "output": "12"},
    {"instruction": "Name a colour.", "input": "", "output": "Red"},
    {"instruction": "Name a tree.", "output": "Oak"},
]
ASKED = ["Find the perimeter.\n\na = 3, b = 4, c = 5", "Name a colour.", "Name a tree."]


@pytest.mark.parametrize("options", [{}, {"prompt": "instruction", "response": "output"}])
def test_alpaca_keeps_its_input(jsonl, options):
    found = read(Source(jsonl([row | {"text": "Below is ..."} for row in ALPACA]), **options))
    assert found["prompt"][:] == ASKED
    assert found["response"][:] == ["12", "Red", "Oak"]


def test_prompts_need_no_response(jsonl):
    rows = [{"instruction": "Name a colour.", "input": "", "output": ""}, {"instruction": "Name a tree."}]
    assert read(Source(jsonl(rows)), need_response=False)["prompt"][:] == ["Name a colour.", "Name a tree."]
    found = read(Source(jsonl([{"prompt": "a", "response": " "}, {"prompt": "b"}])), need_response=False)
    assert list(found) == [{"prompt": "a", "line": 1}, {"prompt": "b", "line": 2}]


def test_ultrachat_is_its_messages(jsonl):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    found = read(Source(jsonl([{"prompt": "a", "prompt_id": "f0", "messages": turns}])))
    assert form_of(found) == "messages"
    assert messages_of(found[0]) == (turns, None)


def test_columns_of_later_rows_are_found(jsonl):
    rows = [{"text": "a"}, {"text": "b", "generation_temperature": 0.7}]
    assert read(Source(jsonl(rows)))["generation_temperature"][:] == [None, 0.7]
    rows = [{"turns": ["a"]}, {"turns": ["b"], "category": "math"}]
    assert read(Source(jsonl(rows)), need_response=False)["category"][:] == [None, "math"]
    turns = [{"role": "user", "content": "a"}]
    rows = [{"messages": turns}, {"messages": turns, "tools": [{"name": "f"}]}]
    assert [messages_of(row)[1] for row in read(Source(jsonl(rows)))] == [None, [{"name": "f"}]]
    exact = {"prompt_ids": [1], "response_ids": [2], "tokenizer": "x"}
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b"} | exact]
    assert read(Source(jsonl(rows)))["prompt_ids"][:] == [None, [1]]


def test_a_temperature_far_down_the_file_is_found(jsonl):
    rows = [{"text": "a"}] * 2500 + [{"text": "b", "generation_temperature": 0.7}]
    assert read(Source(jsonl(rows)))["generation_temperature"][-1] == 0.7


def test_a_broken_first_row_does_not_decide(jsonl):
    turns = [{"role": "user", "content": "a"}]
    rows = [{"text": "no messages"}, *[{"messages": turns, "text": "a"}] * 9]
    skipped = Skipped()
    assert read(Source(jsonl(rows)), skipped=skipped)["line"][:] == list(range(2, 11))
    assert skipped.as_dict() == {"messages is missing": 1}


DPO = [
    ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt"}, "rejected": {}}, "the last turn"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "`prompt: prompt, response: chosen`"),
    ({"chosen": "Human: a", "rejected": "Human: b"}, "`text: chosen`"),
    ({"prompt": "a", "chosen": [{"role": "user", "content": "a"}], "rejected": []}, "`messages: chosen`"),
]


@pytest.mark.parametrize(("row", "advice"), DPO)
def test_preferences_are_named_and_told_what_helps(jsonl, row, advice):
    with pytest.raises(UserError, match="got preferences, chosen and rejected") as caught:
        read(Source(jsonl([row])))
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"id": "a long identifier", "body": "a", "n": 5}, "for example `text: body`"),
        ({"id": "identity_0", "tags": ["a"], "n": 5}, "none of them holds text"),
        ({"title": "Ulm", "paragraphs": [{"context": "a"}]}, "paragraphs holds rows of its own"),  # SQuAD
        ({"id": "x", "dialog": [{"role": "user", "content": "a"}]}, "name yours: `messages: dialog`"),
    ],
)
def test_a_hint_names_a_column_that_holds_text(jsonl, row, hint):
    with pytest.raises(UserError, match="expected columns text, prompt and response, instruction and output") as caught:
        read(Source(jsonl([row])))
    assert hint in str(caught.value)


def test_images_that_are_not_read_are_one_line(jsonl, caplog):
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    with caplog.at_level("INFO"):
        read(Source(jsonl([{"messages": turns, "images": ["cat.jpg"]}])))
    assert "images is not read: placeholders such as <image> stay as text" in caplog.text


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
BROKEN = {
    "not JSON": '{"messages": [',
    "not UTF-8": b'{"messages": "caf\xe9"}',
    "no JSON object": "[5]",
    "messages is missing": json.dumps({"text": "a"}),
    "messages is no list of messages": json.dumps({"messages": 5}),
    "messages is no Unicode": json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}),
    "a message without a role": json.dumps({"messages": [{"content": "a"}]}),
    "content is null": json.dumps({"messages": [{"role": "assistant", "content": None}]}),
    "content is no text": json.dumps({"messages": [{"role": "user", "content": 5}]}),
    "generation_temperature is no temperature": json.dumps({"messages": TURNS, "generation_temperature": "hot"}),
}


def test_ten_kinds_of_broken_rows_are_left_out_and_named(tmp_path):
    good = json.dumps({"messages": TURNS}).encode()
    lines = [good] * 10_000
    for number, line in enumerate(BROKEN.values()):
        lines[number * 1000 + 500] = line if isinstance(line, bytes) else line.encode()
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b"\n".join(lines))
    skipped = Skipped()
    found = read(Source(str(path)), skipped=skipped)
    assert len(found) == 9990
    assert skipped.as_dict() == dict.fromkeys(BROKEN, 1)
    assert skipped.first.startswith(f"{path} line 501: not JSON")
    skipped.check(10_000, 0.001)
    with pytest.raises(UserError, match=r"chat.jsonl line 501: not JSON .*10 of 10000 rows cannot be used") as caught:
        skipped.check(10_000, 0.0005)
    assert all(kind in str(caught.value) for kind in BROKEN)


def test_a_place_counts_blank_lines_and_blank_rows(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n\n\n{"text": " "}\n{"text": "b"}\n{"text": 5}\n')
    skipped = Skipped()
    assert read(Source(str(path)), skipped=skipped)["line"][:] == [1, 5]
    assert skipped.first == f"{path} line 6: text is no text (got int)"


def test_a_file_that_is_all_wrong_says_why(jsonl):
    with pytest.raises(
        UserError, match=r"line 1: text is no text \(got int\); no row can be used \(3 text is no text\)"
    ):
        read(Source(jsonl([{"text": 5}] * 3)), skipped=Skipped())
    with pytest.raises(UserError, match="no column 'txt'; did you mean 'text'"):
        read(Source(jsonl([{"text": "a"}]), text="txt"), skipped=Skipped())
