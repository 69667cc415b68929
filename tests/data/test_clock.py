"""Templates that write today's date: a run keeps that of its first prompts."""

import json
from datetime import datetime, timedelta

import pytest
from transformers.utils import chat_template_utils

from tempspec.data.clock import at_the_time_of
from tempspec.data.encoding import Encoder
from tempspec.data.prompts import PromptSource, read_prompts
from tempspec.errors import UserError

DATED = (
    "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% else %}{% set today = 'x' %}"
    "{% endif %}Today: {{ today }}|{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""As Llama 3.1's template asks for the date."""


class Tomorrow(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(days=1)


@pytest.fixture
def dated(chat):
    tokenizer = chat("plain")
    tokenizer.chat_template = DATED
    return Encoder(tokenizer)


def test_a_run_keeps_its_date_over_midnight(dated, jsonl, tmp_path, monkeypatch):
    source = PromptSource(jsonl([{"turns": ["the fox", "a hill"]}]))
    today = read_prompts("s", source, at_the_time_of(tmp_path / "run", dated))
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert read_prompts("s", source, dated)[0].ids != today[0].ids
    again = read_prompts("s", source, at_the_time_of(tmp_path / "run", dated))
    assert again == today
    assert again[0].after(["ran"]) == today[0].after(["ran"])
    assert f"Today: {datetime.now():%d %b %Y}|" in dated.text(again[0].ids)


def test_templates_without_a_date_leave_no_note(chat, tmp_path):
    encoder = Encoder(chat("plain"))
    assert at_the_time_of(tmp_path, encoder) is encoder
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("note", ["", "{", "[]", json.dumps({"templates write": 5})])
def test_a_torn_note_is_one_line(dated, tmp_path, note):
    (tmp_path / "prompts.date.json").write_text(note)
    with pytest.raises(UserError, match="expected the time that chat templates write; remove it"):
        at_the_time_of(tmp_path, dated)
