"""Conversations in the shapes of the field's files: OpenAI's, ShareGPT's, those of Parquet."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from tempspec.data.sources import Source, messages_of, read
from tempspec.errors import UserError

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
OPENAI = [
    {"role": "user", "content": "Weather?", "name": "Ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "ask", "refusal": None},
    {"role": "tool", "tool_call_id": "c1", "content": "12 degrees"},
    {"role": "assistant", "content": [{"type": "text", "text": "Cool."}], "thinking": "done"},
]


def messages(path, **options):
    (row,) = read(Source(str(path), **options))
    return messages_of(row)


def test_a_message_keeps_all_that_it_says(jsonl):
    found, tools = messages(jsonl([{"messages": OPENAI, "tools": TOOLS}]))
    expected = json.loads(json.dumps(OPENAI))
    expected[1]["tool_calls"][0]["function"]["arguments"] = {"city": "Ulm"}  # as templates expect them
    del expected[1]["refusal"]
    assert found == expected
    assert tools == TOOLS


def test_messages_and_tools_may_be_json_text(jsonl):
    found, tools = messages(jsonl([{"messages": json.dumps(OPENAI[:1]), "tools": json.dumps(TOOLS)}]))
    assert (found, tools) == (OPENAI[:1], TOOLS)
    assert messages(jsonl([{"messages": OPENAI[:1], "tools": "[]"}]))[1] is None
    assert messages(jsonl([{"messages": OPENAI[:1], "tools": [json.dumps(TOOLS[0])]}]))[1] == TOOLS


def test_keys_that_parquet_made_up_are_not_there(tmp_path):
    rows = [
        {"messages": OPENAI[:1], "tools": None},
        {"messages": [{"role": "user", "content": "a"}, *OPENAI[1:3]], "tools": TOOLS},
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    first, second = read(Source(str(tmp_path / "d.parquet")))
    assert messages_of(first) == (OPENAI[:1], None)
    found, tools = messages_of(second)
    assert found[0] == {"role": "user", "content": "a"}
    assert found[1].keys() == {"role", "content", "tool_calls", "reasoning_content"}
    assert found[1]["content"] is None
    assert tools == TOOLS


SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "user", "value": "Weather?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
    {"from": "observation", "value": "12 degrees"},
    {"from": "chatgpt", "value": "Cool."},
]
AS_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}],
    },
    {"role": "tool", "content": "12 degrees"},
    {"role": "assistant", "content": "Cool."},
]


@pytest.mark.parametrize("options", [{}, {"messages": "conversations"}])
@pytest.mark.parametrize("turns", [SHAREGPT, AS_MESSAGES])
def test_conversations_of_both_shapes_are_messages(jsonl, turns, options):
    path = jsonl([{"id": "identity_0", "conversations": turns}])
    assert messages(path, **options)[0] == AS_MESSAGES


def test_a_system_column_is_the_first_message(jsonl):
    beside = {"conversations": SHAREGPT[1:3], "system": "Be brief.", "tools": "[]"}
    assert messages(jsonl([beside]))[0] == AS_MESSAGES[:3]
    assert messages(jsonl([beside | {"conversations": SHAREGPT[:3], "system": "Other."}]))[0] == AS_MESSAGES[:3]
    assert messages(jsonl([beside | {"system": ""}]))[0] == AS_MESSAGES[1:3]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([{"from": "narrator", "value": "x"}], "unknown role (got 'narrator', expected human, user, gpt"),
        ([{"role": "assistant", "content": None}], "content is null (of assistant)"),
        ([{"role": "assistant"}], "content is null"),
        ([{"role": "user", "content": 5}], "content is no text (got 5)"),
        ([{"role": "user", "content": "a", "tool_calls": 5}], "tool_calls is no list"),
        ([{"content": "a"}], "a message without a role"),
        ([{"role": "user", "content": "\ud800"}], "messages is no Unicode"),
        (["hi"], "messages is no list of messages"),
        ("hi", "messages is no list of messages"),
        ({"role": "user", "content": "a"}, "messages is no list of messages"),
    ],
)
def test_what_cannot_be_messages_is_refused(jsonl, turns, reason):
    with pytest.raises(UserError) as caught:
        read(Source(jsonl([{"messages": turns}])))
    assert f"rows.jsonl line 1: {reason}" in str(caught.value)


def test_tools_that_are_none_are_refused(jsonl):
    with pytest.raises(UserError, match="line 1: tools is no list of tools"):
        read(Source(jsonl([{"messages": OPENAI, "tools": "weather"}])))
