"""`tempspec.decode`: speculative decoding in one call."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tempspec as ts
from tempspec.errors import UserError
from tempspec.models.eagle3 import Eagle3
from tempspec.models.loading import load_model, save_model
from tempspec.models.tapping import head_target

WORDS = ["<eos>", *(f"w{number}" for number in range(1, 24))]
PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]


def tiny(seed, layers):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,  # the head is padded
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(24.0)
    return model


@pytest.fixture(scope="module")
def words():
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="w1"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] + ' w9 ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'w10' }}{% endif %}"
    )
    return tokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("pair")
    save_model(tiny(0, 2), words, folder / "target")
    save_model(tiny(1, 1), words, folder / "draft")
    return str(folder / "target"), str(folder / "draft")


def test_greedy_text_is_what_the_target_writes_itself(pair):
    target, draft = pair
    found = ts.decode(target, draft, PROMPTS, temperature=0, max_new_tokens=12)
    plain = ts.decode(target, None, PROMPTS, temperature=0, max_new_tokens=12)
    assert found.texts == plain.texts
    assert [one.prompt for one in found] == PROMPTS
    assert all(set(one.text.split()) <= set(WORDS) for one in found)
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
    target, draft = tiny(0, 2).train(), tiny(1, 1)
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
