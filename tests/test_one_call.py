"""`tempspec.decode`: speculative decoding in one call."""

import pytest
import torch

import tempspec as ts
from tempspec.errors import UserError
from tempspec.models.eagle3 import Eagle3
from tempspec.models.loading import load_model
from tempspec.models.tapping import head_target
from tests import tiny

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]


@pytest.fixture(scope="module")
def words():
    tokenizer = tiny.words()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] + ' w9 ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'w10' }}{% endif %}"
    )
    return tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("pair")
    tiny.save_pair(folder, words, draft_vocabulary=32)
    return str(folder / "target"), str(folder / "draft")


def test_greedy_text_is_what_the_target_writes_itself(pair):
    target, draft = pair
    found = ts.decode(target, draft, PROMPTS, temperature=0, max_new_tokens=12)
    plain = ts.decode(target, None, PROMPTS, temperature=0, max_new_tokens=12)
    assert found.texts == plain.texts
    assert [one.prompt for one in found] == PROMPTS
    assert all(set(one.text.split()) <= set(tiny.WORDS) for one in found)
    assert all(0 <= one.accepted <= one.drafted for one in found)
    assert plain[0].drafted == 0
    assert sum(one.target_calls for one in found) < sum(one.target_calls for one in plain)
    (row,) = found.summary
    assert row["block_efficiency"] == pytest.approx(
        sum(len(one.tokens) for one in found) / sum(one.target_calls for one in found)
    )
    assert 0 < row["acceptance_rate"] <= 1
    assert "block efficiency" in str(found.summary)


def test_loaded_models_give_what_their_folders_give(pair, words):
    by_name = ts.decode(*pair, PROMPTS, max_new_tokens=8, seed=3)
    target, draft = tiny.pair(draft_vocabulary=32)
    target.train()
    loaded = ts.decode(target, draft, PROMPTS, max_new_tokens=8, seed=3, tokenizer=words)
    assert [one.tokens for one in loaded] == [one.tokens for one in by_name]
    assert target.training
    assert not draft.training
    with pytest.raises(UserError, match=r"give its tokenizer, tokenizer=\.\.\."):
        ts.decode(target, draft, PROMPTS)


def test_a_heads_folder_drafts_with_the_head(pair, tmp_path):
    target, known = load_model(pair[0]), Eagle3(states=[0, 1, 2])
    known.save(known.build(head_target(target)), head_target(target), tmp_path / "head", "plain", torch.float32)
    found = ts.decode(pair[0], str(tmp_path / "head"), PROMPTS, temperature=0, max_new_tokens=6)
    plain = ts.decode(pair[0], None, PROMPTS, temperature=0, max_new_tokens=6)
    assert [each.text for each in found] == [each.text for each in plain]
    assert any(sum(each.completion.drafted) for each in found)


def test_a_number_drafts_with_the_first_layers(pair):
    found = ts.decode(pair[0], 2, "w1 w2 w3", max_new_tokens=8, length="FixedLength")  # all of them: a perfect draft
    assert found.summary[0]["acceptance_rate"] == pytest.approx(1.0)


def test_a_drafter_without_a_model_needs_no_draft(pair):
    found = ts.decode(pair[0], None, "w1 w2 w1 w2 w1", drafter="PromptLookup", length=2, max_new_tokens=8)
    assert found[0].drafted > 0


def test_a_conversation_is_asked_under_the_chat_template(pair, words):
    talk = [{"role": "user", "content": "w1 w2"}]
    one = ts.decode(*pair, talk, max_new_tokens=4)
    assert len(one) == 1
    assert words.decode(one[0].completion.request.prompt) == "w1 w2 w9 w10"
    several = ts.decode(*pair, [talk, "w3"], max_new_tokens=4)
    assert several.texts[0] == one.texts[0]


def test_what_cannot_be_decoded_has_one_line(pair):
    with pytest.raises(UserError, match="did you mean 'BlockVerification'"):
        ts.decode(*pair, PROMPTS, verifier="BlockVerificaton")
    with pytest.raises(UserError, match="at least one token"):
        ts.decode(*pair, [""])
    with pytest.raises(UserError, match="messages with role and content"):
        ts.decode(*pair, [[{"who": "user"}]])
