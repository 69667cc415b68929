import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = (
    "the fox ran over a red hill and then it slept under one old tree while rain fell on all the green leaves".split()
)


def sentence(number: int, words: int = 12) -> str:
    return (
        " ".join(WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] for place in range(words)) + f" {number}."
    )


def trained(*, bos: bool) -> PreTrainedTokenizerFast:
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rules.train_from_iterator([sentence(number) for number in range(50)], trainer)
    if bos:
        rules.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=rules, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE that adds BOS by itself."""
    return trained(bos=True)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


PLAIN = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for turn in messages %}<{{ turn.role }}>{% if turn.role == 'assistant' %}{% generation %}"
    "{{ turn.content }}|{% endgeneration %}{% else %}{{ turn.content }}|{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REFUSING = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture(params=["plain", "marked"])
def template(request):
    """The name of a chat template, which `chat` understands."""
    return request.param


@pytest.fixture
def chat():
    """A tokenizer with the named chat template."""

    def make(name: str) -> PreTrainedTokenizerFast:
        tokenizer = trained(bos=False)
        templates = {"plain": PLAIN, "marked": MARKED, "refusing": REFUSING}
        tokenizer.chat_template = templates[name]
        return tokenizer

    return make


@pytest.fixture
def tokenizer_without_bos():
    """Byte-level BPE that adds nothing by itself."""
    return trained(bos=False)


@pytest.fixture
def jsonl(tmp_path):
    """Write rows as JSON Lines; returns the path as text."""

    def write(rows, name="rows.jsonl") -> str:
        path = Path(tmp_path) / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def sentences():
    """Distinct short texts by number."""
    return sentence
