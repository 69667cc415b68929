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


def test_doubles_and_long_prompts_are_left_out_and_do_not_use_up_the_limit(tokenizer, jsonl, sentences):
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
        ({"prompt_tokens": 9, "max_prompt_tokens": 4}, "is empty: 1 too long"),
        ({"prompt_tokens": 0}, "prompt_tokens must be 1 or more, got 0"),
        ({"limit": 0}, "limit must be 1 or more, got 0"),
        ({"max_prompt_tokens": -1}, "max_prompt_tokens must be 1 or more, got -1"),
        ({"text": "txt"}, "no column 'txt'; did you mean 'text'"),
    ],
)
def test_an_empty_or_wrong_set_is_one_line(tokenizer, jsonl, sentences, options, message):
    with pytest.raises(UserError) as caught:
        read_prompts("chat", PromptSource(jsonl([{"text": sentences(0)}]), **options), Encoder(tokenizer))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
