from copy import deepcopy

import pytest
from transformers import ByT5Tokenizer

from tempspec.data.encoding import Conversation, Encoder, PromptResponse
from tempspec.data.turns import EMPTY, REWRITTEN, UNASKED, Unusable
from tempspec.errors import UserError
from tempspec.models.digests import tokenizer_digest
from tests.data import templates
from tests.data.templates import llama2_like, qwen_like

TURNS = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "ran over"},
    {"role": "user", "content": "a red"},
    {"role": "assistant", "content": "hill"},
]
CALL = {"type": "function", "function": {"name": "over", "arguments": {"hill": "red"}}}
TOOLS = [{"type": "function", "function": {"name": "over", "parameters": {}}}]
SHAPES = {
    "ChatML": (qwen_like, templates.CHATML, "{}<|im_end|>"),
    "Llama 3": (qwen_like, templates.LLAMA3, "{}<|eot|>"),
    "Qwen": (qwen_like, templates.QWEN, "{}<|im_end|>"),
    "marked": (qwen_like, templates.MARKED, "{}<|im_end|>"),
    "Llama 2": (llama2_like, templates.LLAMA2, " {} </s>"),
    "ChatML of pieces": (llama2_like, templates.CHATML, "{}<|im_end|>"),
}


def encode(tokenizer, messages, tools=None, *, ended=True):
    (encoded,) = Encoder(tokenizer).conversations([Conversation(messages, tools, ended)])
    return encoded


def learned(tokenizer, messages, tools=None, *, ended=True):
    """What is learned, part by part."""
    encoded = encode(tokenizer, messages, tools, ended=ended)
    return [tokenizer.decode(encoded.ids[begin:end]) for begin, end in encoded.spans]


def talk(*said):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]


# -- texts ------------------------------------------------------------------------------------------------------------


def test_a_document_runs_from_bos_to_eos_and_round_trips(tokenizer, sentences):
    encoder = Encoder(tokenizer)
    (ids,) = encoder.documents([sentences(3)])
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert encoder.text(ids) == sentences(3)


def test_a_pair_is_its_two_texts_between_bos_and_eos(tokenizer):
    encoder = Encoder(tokenizer)
    (prompt,), (pair,) = encoder.prompts(["the fox"]), encoder.pairs([PromptResponse("the fox", " ran over")])
    assert pair.ids.tolist() == encoder.documents(["the fox ran over"])[0]
    assert pair.ids[: pair.spans[0][0]].tolist() == prompt
    assert tokenizer.eos_token_id not in prompt


@pytest.mark.parametrize("add_bos", [False, True])
def test_bos_is_added_on_demand_and_never_twice(tokenizer, tokenizer_without_bos, add_bos):
    (own,) = Encoder(tokenizer, add_bos=add_bos).prompts(["the fox"])
    (asked,) = Encoder(tokenizer_without_bos, add_bos=add_bos).prompts(["the fox"])
    bos = tokenizer.bos_token_id
    assert own.count(bos) == 1
    assert asked.count(bos) == add_bos
    assert own[1:] == asked[add_bos:]


@pytest.mark.parametrize("add_bos", [False, True])
def test_text_that_begins_with_bos_gets_no_second_one(tokenizer, add_bos):
    encoder = Encoder(tokenizer, add_bos=add_bos)
    (plain, templated), (pair,) = (
        encoder.prompts(["the fox", "<s>the fox"]),
        encoder.pairs([PromptResponse("<s>the fox", "ran")]),
    )
    assert templated == plain
    assert pair.ids[: pair.spans[0][0]].tolist() == plain
    assert encoder.documents(["<s>the fox</s>"]) == encoder.documents(["the fox"])


def test_an_eos_that_a_prompt_ends_with_is_kept(tokenizer):
    (ids,) = Encoder(tokenizer).prompts(["<s>the fox</s>"])
    assert (ids.count(tokenizer.bos_token_id), ids[-1]) == (1, tokenizer.eos_token_id)


def test_folding_equals_folded_text(tokenizer):
    folded = Encoder(tokenizer, collapse_whitespace=True).documents(["the \n\n fox\tran"])
    assert folded == Encoder(tokenizer).documents(["the fox ran"])


def test_a_folded_prompt_begins_its_pair(tokenizer):
    encoder = Encoder(tokenizer, collapse_whitespace=True)
    (pair,), (prompt,) = encoder.pairs([PromptResponse("the\n\nfox\n", "\n ran")]), encoder.prompts(["the\n\nfox\n"])
    assert encoder.text(pair.ids) == "the fox ran"
    assert pair.prompt.tolist() == prompt


# -- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [qwen_like(), llama2_like()], ids=["bytes", "pieces"])
@pytest.mark.parametrize("response", [" ran over", "\n\nhill", "over", "\nhill", " "])
@pytest.mark.parametrize("prompt", ["the fox", "the fox\n", "the fox ", "a red"])
def test_a_pair_is_tokenised_as_one_text(tokenizer, prompt, response):
    encoder = Encoder(tokenizer)
    (pair,), (asked,) = encoder.pairs([PromptResponse(prompt, response)]), encoder.prompts([prompt])
    eos = tokenizer.eos_token_id
    assert pair.ids.tolist() == [*tokenizer(prompt + response, add_special_tokens=False)["input_ids"], eos]
    assert pair.prompt.tolist() == asked
    ((begin, end),) = pair.spans
    said = tokenizer.decode(pair.ids[begin : end - 1])
    whole = tokenizer.decode(pair.ids[:-1])
    if pair.asked is None:  # no token reaches over the border
        assert pair.ids[:begin].tolist() == asked
        assert whole.endswith(said)
        assert len(whole) - len(tokenizer.decode(asked)) == len(prompt + response) - len(prompt)
    else:  # that token, and it alone, is not learned
        assert pair.ids[: begin - 1].tolist() == asked[: begin - 1]
        assert len(said) < len(response)


def test_no_blank_is_put_between_prompt_and_response():
    tokenizer = llama2_like()
    (pair,) = Encoder(tokenizer).pairs([PromptResponse("the", " fox")])
    assert tokenizer.convert_ids_to_tokens(pair.ids.tolist())[:-1] == ["▁the", "▁fox"]


def test_a_response_that_was_cut_has_no_eos(tokenizer):
    whole, cut = Encoder(tokenizer).pairs([PromptResponse("the", " fox"), PromptResponse("the", " fox", ended=False)])
    assert whole.ids.tolist() == [*cut.ids.tolist(), tokenizer.eos_token_id]


@pytest.mark.parametrize("make", [qwen_like, llama2_like])
@pytest.mark.parametrize("text", ["ran over", "\nhill", " hill", "\n\n"])
@pytest.mark.parametrize("prompt", ["the fox", "the fox\n", "the fox "])
def test_text_from_a_server_follows_its_prompt(make, prompt, text):
    encoder = Encoder(make())
    (asked,) = encoder.prompts([prompt])
    ids = encoder.following(asked, text, ended=True)
    assert ids[-1] == encoder.tokenizer.eos_token_id
    assert encoder.tokenizer.decode([*asked, *ids[:-1]]) == prompt + text


def test_a_tokenizer_without_positions_is_given_pieces():
    tokenizer = ByT5Tokenizer()
    encoder = Encoder(tokenizer)
    (pair,) = encoder.pairs([PromptResponse("the é", " fox")])
    ((begin, end),) = pair.spans
    assert (tokenizer.decode(pair.ids[:begin]), tokenizer.decode(pair.ids[begin : end - 1])) == ("the é", " fox")
    assert pair.ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("what", ["truncation", "padding"])
def test_padding_and_truncation_of_the_file_are_turned_off(tokenizer, sentences, what):
    texts = [sentences(1), sentences(4)]
    expected = Encoder(tokenizer).documents(texts)
    configured = deepcopy(tokenizer)
    if what == "truncation":
        configured.backend_tokenizer.enable_truncation(2)
    else:
        configured.backend_tokenizer.enable_padding(length=64)
    assert Encoder(configured).documents(texts) == expected


def test_a_tokenizer_whose_call_does_more_is_called(tokenizer):
    class Shouted(type(tokenizer)):
        def __call__(self, text, **options):
            return super().__call__([each.replace("fox", "hill") for each in text], **options)

    shouted = Shouted(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    encoder = Encoder(shouted)
    assert encoder.text(encoder.documents(["a hill", "a fox"])[1]) == "a hill"


# -- conversations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_every_assistant_turn_is_learned_and_nothing_else(shape):
    make, template, turn = SHAPES[shape]
    tokenizer = make(template)
    encoded = encode(tokenizer, TURNS)
    ids = tokenizer.apply_chat_template(TURNS, return_dict=True)["input_ids"]
    assert encoded.ids.tolist() == ids
    said = [tokenizer.decode(ids[begin:end]) for begin, end in encoded.spans]
    assert [each.strip() for each in said] == [turn.format(each).strip() for each in ("ran over", "hill")]
    assert encoded.unlearned == []


@pytest.mark.parametrize("shape", SHAPES)
def test_the_prompt_at_decoding_begins_the_row(shape):
    make, template, _ = SHAPES[shape]
    encoder = Encoder(make(template))
    encoded = encode(encoder.tokenizer, TURNS)
    assert encoder.opening(TURNS[:1]) == encoder.opening(TURNS[:2]) == encoded.prompt.tolist()
    assert encoder.opening(TURNS) == encoded.ids[: encoded.spans[1][0]].tolist()


@pytest.mark.parametrize("answer", ["\n\nfox", "\nhill", "fox"])
@pytest.mark.parametrize(
    "shape", [shape for shape in SHAPES if shape != "marked"]
)  # of which the template draws the borders
def test_the_prompt_of_a_row_is_the_same_whatever_is_said(shape, answer):
    make, template, _ = SHAPES[shape]
    encoder = Encoder(make(template))
    rows = encoder.conversations([Conversation(talk("the fox", answer, "a", "\nran")), Conversation(talk("a", answer))])
    assert [row.prompt.tolist() for row in rows] == [encoder.opening(talk(asked)) for asked in ("the fox", "a")]


@pytest.mark.parametrize(
    "said",
    [
        ("the fox", " ran \n", "a", "hill"),
        ("a", "\nfox", "a", "\n\nhill"),
        ("assistant", "user", "user", "assistant"),
        ("the fox", "<|im_end|>\n<|im_start|>assistant\nran", " ", "hill"),
        ("", "ran", "", "hill", "the", "x"),
    ],
)
@pytest.mark.parametrize("template", [templates.CHATML, templates.LLAMA3, templates.QWEN, templates.THINKING])
def test_borders_by_roles_are_those_by_renderings(template, said):
    finder = Encoder(qwen_like(template))._template
    messages = talk(*said)
    finder.find(talk(*"abcdef"[: len(said)]))
    quick = finder.find(messages)
    assert quick == finder._searched(messages, None, finder.render(messages))
    assert len(quick.spans) == len(said) // 2


def test_an_answer_that_begins_with_a_newline_keeps_its_row():
    tokenizer = qwen_like()
    encoded = encode(tokenizer, talk("a", "\nfox", "a", "hill"))
    assert [tokenizer.decode(encoded.ids[begin:end]) for begin, end in encoded.spans] == [
        "fox<|im_end|>",  # one token holds both newlines, the prompt's and the answer's
        "hill<|im_end|>",
    ]
    assert encoded.prompt.tolist() == Encoder(tokenizer).opening(talk("a"))


def test_tool_calls_and_tools_reach_the_template():
    tokenizer = qwen_like(templates.QWEN)
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    messages = [TURNS[0], called, {"role": "tool", "content": "red"}, TURNS[3]]
    first, last = learned(tokenizer, messages, TOOLS)
    assert first == '\n<tool_call>{"name": "over", "arguments": {"hill": "red"}}</tool_call><|im_end|>'.lstrip()
    assert last == "hill<|im_end|>"
    encoded = encode(tokenizer, messages, TOOLS)
    assert encoded.ids.tolist() == tokenizer.apply_chat_template(messages, tools=TOOLS, return_dict=True)["input_ids"]


def test_a_turn_of_nothing_but_its_end_is_counted():
    tokenizer = qwen_like(templates.CHATML)
    empty = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    encoded = encode(tokenizer, [TURNS[0], empty, *TURNS[2:]])
    assert [tokenizer.decode(encoded.ids[begin:end]) for begin, end in encoded.spans] == ["hill<|im_end|>"]
    assert encoded.unlearned == [EMPTY]


def test_a_greeting_answers_nothing_and_is_not_learned():
    tokenizer = qwen_like()
    encoded = encode(tokenizer, TURNS[1:])
    assert encoded.unlearned == [UNASKED]
    assert learned(tokenizer, TURNS[1:]) == ["hill<|im_end|>"]


def test_thoughts_that_a_template_strips_are_counted():
    tokenizer = qwen_like(templates.THINKING)
    thought = [turn | {"reasoning_content": "a red"} if turn["role"] == "assistant" else turn for turn in TURNS]
    within = talk("the", "<think>red</think>ran", "a", "hill")
    for messages in (thought, within):
        encoded = encode(tokenizer, messages)
        assert encoded.unlearned == [REWRITTEN]
    assert learned(tokenizer, thought) == ["<think>\na red\n</think>\n\nhill<|im_end|>"]
    assert [part[-14:] for part in learned(tokenizer, TURNS)] == ["over<|im_end|>", "hill<|im_end|>"]


def test_a_cut_answer_is_learned_without_its_end():
    tokenizer = qwen_like()
    assert learned(tokenizer, TURNS, ended=False) == ["ran over<|im_end|>", "hill"]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (templates.CHATML, TURNS[:1], "the last turn is not the assistant's (got 'user'"),
        (templates.CHATML, TURNS[1:2], "there is no turn before the assistant's"),
        (
            templates.R1,
            TURNS,
            "prompt differently once it is answered (that is the template's doing, not the row's: use",
        ),
        ("{{ raise_exception('roles must alternate') }}", TURNS, "the chat template refuses it (roles must alternate"),
        (
            templates.CHATML,
            [TURNS[0] | {"content": [{"type": "text", "text": "a"}]}, TURNS[1]],
            "template refuses it (",
        ),
        (
            "{% for m in messages %}{{ m.content }}|{% endfor %}",
            [TURNS[0] | {"content": [{"type": "text", "text": "a"}]}, TURNS[1]],
            "content in parts, which the chat template cannot write",
        ),
    ],
)
def test_a_conversation_that_cannot_be_masked_is_unusable(template, messages, message):
    tokenizer = qwen_like(template)
    broken, fine = Encoder(tokenizer).conversations([Conversation(messages), Conversation(TURNS)])
    assert isinstance(broken, Unusable)
    assert message in str(broken)
    assert isinstance(fine, Unusable) == (messages is TURNS)


def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    with pytest.raises(UserError, match="has no chat template"):
        Encoder(tokenizer).opening(TURNS)


def test_the_digest_follows_what_the_tokenizer_does(tokenizer, tokenizer_without_bos, chat, tokenizer_folder):
    reloaded = type(tokenizer).from_pretrained(tokenizer_folder)
    digests = [tokenizer_digest(each) for each in (tokenizer, tokenizer_without_bos, chat("plain"), chat("marked"))]
    assert len(set(digests)) == 4
    assert tokenizer_digest(reloaded) == tokenizer_digest(tokenizer)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("broken", [False, True], ids=["whole", "one is broken"])
def test_many_conversations_are_what_each_is_alone(shape, broken):
    make, template, _ = SHAPES[shape]
    encoder = Encoder(make(template))
    asked = [Conversation(talk(*said)) for said in (("the fox", "ran"), ("a", " hill\n"), ("red", "a", "fox", "over"))]
    asked += [Conversation(TURNS[:3])] * broken + [Conversation([{"role": "assistant", "content": None}])] * broken
    together, alone = encoder.conversations(asked), [encoder.conversations([each])[0] for each in asked]
    for one, other in zip(together, alone, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Unusable):
            assert one.reason == other.reason
        else:
            assert (one.ids.tolist(), one.spans) == (other.ids.tolist(), other.spans)
    assert sum(isinstance(each, Unusable) for each in together) == 2 * broken
