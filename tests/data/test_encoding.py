import pytest

from tempspec.data.encoding import Encoder
from tempspec.errors import UserError
from tempspec.models.identity import tokenizer_digest

TURNS = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "ran over"},
    {"role": "user", "content": "a red"},
    {"role": "assistant", "content": "hill"},
]


def test_a_document_runs_from_bos_to_eos_and_round_trips(tokenizer, sentences):
    encoder = Encoder(tokenizer)
    (ids,) = encoder.documents([sentences(3)])
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert encoder.text(ids) == sentences(3)


def test_prompt_and_response_make_the_document_of_their_texts_between_bos_and_eos(tokenizer):
    encoder = Encoder(tokenizer)
    (prompt,), (response,) = encoder.prompts(["the fox"]), encoder.responses([" ran over"])
    assert prompt[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in prompt
    assert tokenizer.bos_token_id not in response
    assert response[-1] == tokenizer.eos_token_id
    assert encoder.text(prompt + response) == "the fox ran over"


@pytest.mark.parametrize("add_bos", [False, True])
def test_bos_is_added_on_demand_and_never_twice(tokenizer, tokenizer_without_bos, add_bos):
    (own,) = Encoder(tokenizer, add_bos=add_bos).prompts(["the fox"])
    (asked,) = Encoder(tokenizer_without_bos, add_bos=add_bos).prompts(["the fox"])
    bos = tokenizer.bos_token_id
    assert own.count(bos) == 1
    assert asked.count(bos) == add_bos
    assert own[1:] == asked[add_bos:]


def test_folding_equals_folded_text(tokenizer):
    folded = Encoder(tokenizer, fold_whitespace=True).documents(["the \n\n fox\tran"])
    assert folded == Encoder(tokenizer).documents(["the fox ran"])


def test_the_last_assistant_turn_is_the_response_of_a_plain_template(chat):
    encoder = Encoder(chat("plain"))
    ids, mask = encoder.conversation(TURNS)
    assert ids[: mask.index(True)] == encoder.opening(TURNS) == encoder.opening(TURNS[:-1])
    assert encoder.text([token for token, learn in zip(ids, mask, strict=True) if learn]) == "hill|"
    assert mask == sorted(mask)


def test_every_assistant_turn_counts_where_the_template_marks_them(chat):
    encoder = Encoder(chat("marked"))
    ids, mask = encoder.conversation(TURNS)
    assert encoder.text([token for token, learn in zip(ids, mask, strict=True) if learn]) == "ran over|hill|"


@pytest.mark.parametrize(
    ("name", "turns", "message"),
    [
        ("plain", TURNS[:1], "the last turn must be the assistant's, got 'user'"),
        ("plain", TURNS[1:2], "expected a turn before the assistant's"),
        ("changing", TURNS, "writes the prompt differently once it is answered"),
        ("refusing", TURNS, "the chat template refuses it: roles must alternate"),
    ],
)
def test_a_conversation_that_cannot_be_masked_is_refused(chat, name, turns, message):
    with pytest.raises(ValueError, match=message):
        Encoder(chat(name)).conversation(turns)


def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    with pytest.raises(UserError, match="has no chat template"):
        Encoder(tokenizer).opening(TURNS)


def test_the_digest_follows_what_the_tokenizer_does(tokenizer, tokenizer_without_bos, chat, tokenizer_folder):
    reloaded = type(tokenizer).from_pretrained(tokenizer_folder)
    digests = [tokenizer_digest(each) for each in (tokenizer, tokenizer_without_bos, chat("plain"), chat("marked"))]
    assert len(set(digests)) == 4
    assert tokenizer_digest(reloaded) == tokenizer_digest(tokenizer)
