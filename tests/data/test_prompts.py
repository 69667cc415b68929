import pytest

from tempspec.data.encoding import Encoder
from tempspec.data.prompts import PromptSource, read_prompts
from tempspec.errors import UserError


def test_a_text_gives_its_first_tokens_and_a_short_one_nothing(tokenizer, jsonl, sentences):
    texts = [sentences(0), "the fox", sentences(1)]
    path = jsonl([{"text": text} for text in texts])
    prompts = read_prompts("s", PromptSource(path, prompt_tokens=6), Encoder(tokenizer))
    documents = Encoder(tokenizer).documents([texts[0], texts[2]])
    assert [prompt.ids for prompt in prompts] == [tuple(ids[:6]) for ids in documents]
    assert [prompt.index for prompt in prompts] == [0, 1]
    assert all(text.startswith(prompt.text) for text, prompt in zip((texts[0], texts[2]), prompts, strict=True))


def test_pairs_give_what_training_masks(tokenizer, jsonl):
    path = jsonl([{"prompt": "the fox", "response": "ran"}])
    (prompt,) = read_prompts("s", PromptSource(path, separator="\n"), Encoder(tokenizer))
    assert [list(prompt.ids)] == Encoder(tokenizer).prompts(["the fox\n"])
    assert (prompt.set, prompt.text) == ("s", "the fox")


@pytest.mark.parametrize("answered", [False, True])
def test_conversations_give_the_question(chat, template, jsonl, answered):
    turns = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "ran"}][: 1 + answered]
    encoder = Encoder(chat(template))
    (prompt,) = read_prompts("s", PromptSource(jsonl([{"messages": turns}])), encoder)
    assert encoder.text(prompt.ids) == "<user>the fox|<assistant>"
    assert prompt.text == "the fox"


def test_doubles_and_long_prompts_do_not_use_up_the_limit(tokenizer, jsonl, sentences):
    texts = ["the fox", "the fox", sentences(1), "a red", "the hill"]
    source = PromptSource(jsonl([{"prompt": text} for text in texts]), limit=2, max_prompt_tokens=4)
    prompts = read_prompts("s", source, Encoder(tokenizer))
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(0, "the fox"), (1, "a red")]


def test_a_key_is_a_matter_of_the_ids_alone(tokenizer, jsonl):
    sets = [
        read_prompts(name, PromptSource(jsonl([{"prompt": text} for text in texts])), Encoder(tokenizer))
        for name, texts in {"a": ["the fox", "a red"], "b": ["a red", "the fox"]}.items()
    ]
    assert [prompt.key for prompt in sets[0]] == [prompt.key for prompt in reversed(sets[1])]
    assert len({prompt.key for prompt in sets[0]}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_tokens": 500}, "is empty: 1 too short; lower prompt_tokens"),
        ({"prompt_tokens": 9, "max_prompt_tokens": 4}, "is empty: 1 longer than max_prompt_tokens 4; lower"),
        ({"prompt_tokens": 0}, "prompt_tokens must be 1 or more, got 0"),
        ({"limit": 0}, "limit must be 1 or more, got 0"),
        ({"max_prompt_tokens": -1}, "max_prompt_tokens must be 1 or more, got -1"),
        ({"chat": True}, "chat expected prompts, got texts"),
        ({"chat": True, "prompt": "text", "separator": "!"}, "expected chat or separator, got both"),
        ({"separator": "!"}, "separator expected prompts, which it follows, got text; leave it out"),
        ({"text": "txt"}, "no column 'txt'; did you mean 'text'"),
    ],
)
def test_an_empty_or_wrong_set_is_one_line(tokenizer, jsonl, sentences, options, message):
    with pytest.raises(UserError) as caught:
        read_prompts("chat", PromptSource(jsonl([{"text": sentences(0)}]), **options), Encoder(tokenizer))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["the fox", "a red hill"], "reference": []},
    {"question_id": 82, "category": "writing", "turns": ["the fox", "the tree"]},
    {"question_id": 83, "category": "math", "turns": ["the rain"]},
]


def test_a_question_file_is_read_as_it_is(chat, template, jsonl):
    encoder = Encoder(chat(template))
    prompts = read_prompts("mt", PromptSource(jsonl(MT_BENCH)), encoder)
    assert [(prompt.category, prompt.turns, prompt.text) for prompt in prompts] == [
        ("writing", 2, "the fox"),
        ("writing", 2, "the fox"),
        ("math", 1, "the rain"),
    ]
    assert len({prompt.key for prompt in prompts}) == 3  # the first two differ in their second turn alone
    first = prompts[0]
    assert first.after([]) == first.ids
    assert encoder.text(first.ids) == "<user>the fox|<assistant>"
    assert encoder.text(first.after(["it ran"])) == "<user>the fox|<assistant>it ran|<user>a red hill|<assistant>"


def test_without_a_template_a_conversation_is_plain(tokenizer, jsonl):
    encoder = Encoder(tokenizer)
    first, *_ = read_prompts("mt", PromptSource(jsonl(MT_BENCH)), encoder)
    assert encoder.text(first.ids) == "User: the fox\nAssistant:"
    assert encoder.text(first.after(["it ran"])) == ("User: the fox\nAssistant: it ran\nUser: a red hill\nAssistant:")
    assert first.ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("row", "options", "asked"),
    [
        ({"question": "the fox", "answer": "ran"}, {"prompt": "question"}, "the fox"),  # GSM8K
        ({"task_id": "HumanEval/0", "prompt": "the fox", "test": "ran"}, {}, "the fox"),  # HumanEval
        ({"text": "the fox", "code": "ran", "task_id": 1}, {"prompt": "text"}, "the fox"),  # MBPP
        (
            {"prompt": ["the fox", "a hill"], "category": "x"},
            {"turns": "prompt", "chat": True},
            None,
        ),  # the hub's MT-bench
        ({"prompt": "the fox"}, {"chat": True}, None),
        ({"instruction": "the fox", "input": "", "output": "ran"}, {"chat": True}, None),  # Alpaca
        ({"conversations": [{"from": "human", "value": "the fox"}, {"from": "gpt", "value": "ran"}]}, {}, None),
    ],
)
def test_other_files_are_read_by_their_columns(chat, jsonl, row, options, asked):
    encoder = Encoder(chat("plain"))
    (prompt,) = read_prompts("s", PromptSource(jsonl([row]), **options), encoder)
    assert encoder.text(prompt.ids) == (asked or "<user>the fox|<assistant>")


def test_the_limit_holds_in_every_category(tokenizer, jsonl):
    rows = [{"prompt": f"the fox {number}", "category": number % 3} for number in range(9)]
    prompts = read_prompts("s", PromptSource(jsonl(rows), limit=2), Encoder(tokenizer))
    assert [prompt.category for prompt in prompts] == ["0", "1", "2", "0", "1", "2"]
    renamed = [{"prompt": row["prompt"], "task": "a"} for row in rows]
    prompts = read_prompts("s", PromptSource(jsonl(renamed), limit=2, category="task"), Encoder(tokenizer))
    assert [(prompt.index, prompt.category) for prompt in prompts] == [(0, "a"), (1, "a")]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"turns": "the fox"}, {}, "line 1: turns is no list of texts (one per turn, got 'the fox')"),
        ({"turns": ["the fox", 3]}, {}, "turns is no list of texts"),
        ({"turns": ["the fox", " "]}, {}, "every row is blank"),
        ({"turns": ["the fox"], "category": ["x"]}, {}, "line 1: category is no name (got ['x'])"),
        ({"turns": ["the fox"]}, {"category": "task"}, "no column 'task'"),
        ({"turns": ["the fox"]}, {"turns": "turn"}, "no column 'turn'; did you mean 'turns'"),
        ({"turns": ["the fox"], "text": "a"}, {"turns": "turns", "text": "text"}, "name one of"),
        ({"question": "the fox"}, {}, "messages or conversations, or turns; it has question"),
    ],
)
def test_a_broken_question_file_is_one_line(tokenizer, jsonl, row, options, message):
    with pytest.raises(UserError) as caught:
        read_prompts("chat", PromptSource(jsonl([row]), **options), Encoder(tokenizer))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_later_turns_says_so_at_once(chat, jsonl):
    with pytest.raises(UserError, match=r"line 1: the chat template refuses it \(roles must alternate\)"):
        read_prompts("mt", PromptSource(jsonl(MT_BENCH)), Encoder(chat("refusing")))


def test_what_alpaca_is_about_is_asked_in_the_same_turn(chat, jsonl):
    row = {"instruction": "the fox", "input": "a red hill", "output": "ran"}
    (prompt,) = read_prompts("s", PromptSource(jsonl([row]), chat=True), Encoder(chat("plain")))
    assert prompt.text == "the fox\n\na red hill"
    assert Encoder(chat("plain")).text(prompt.ids) == "<user>the fox\n\na red hill|<assistant>"


def test_a_conversation_that_the_template_refuses_is_counted(chat, jsonl, caplog):
    tokenizer = chat("plain")
    tokenizer.chat_template = (
        "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}<a>{{ messages }}"
    )
    rows = [{"turns": [f"the fox {number}"]} for number in range(150)]
    rows[70] = {"turns": ["bad"]}
    path = jsonl(rows)
    with caplog.at_level("INFO"):
        prompts = read_prompts("mt", PromptSource(path, limit=None), Encoder(tokenizer))
    assert len(prompts) == 149
    assert f"1 the chat template refuses it; the first: {path} line 71" in caplog.text
    with pytest.raises(UserError, match=r"line 71: .*1 of 150 rows cannot be used"):
        read_prompts("mt", PromptSource(path, limit=None), Encoder(tokenizer), max_skipped=0.0)


def test_prompts_that_are_too_long_name_the_option_and_the_row(tokenizer, jsonl, sentences, caplog):
    path = jsonl([{"prompt": "the fox"}, {"prompt": sentences(1)}])
    with caplog.at_level("INFO"):
        read_prompts("s", PromptSource(path, max_prompt_tokens=4), Encoder(tokenizer))
    assert f"left out: 1 longer than max_prompt_tokens 4; the first: {path} line 2" in caplog.text


def test_a_prompt_knows_its_line(tokenizer, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "the fox"}\n\n{"prompt": " "}\n{"prompt": "a red"}\n')
    prompts = read_prompts("s", PromptSource(str(path)), Encoder(tokenizer))
    assert [prompt.place for prompt in prompts] == [f"{path} line 1", f"{path} line 4"]


def test_a_blank_question_is_counted(chat, jsonl):
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ("the fox", " ")]
    with pytest.raises(UserError, match="line 2: the last question is blank; 1 of 2 rows"):
        read_prompts("s", PromptSource(jsonl(rows)), Encoder(chat("plain")))
