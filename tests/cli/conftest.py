import json
import logging

import pytest
import torch
import yaml

from tempspec.models.loading import save_model
from tests.tiny import llama, tokenizer

WORDS = [f"w{number}" for number in range(14)]


def small_llama(layers):
    return llama(layers, 16, layers, hidden_size=8, intermediate_size=16, num_key_value_heads=2)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a target, a draft, a text, and a configuration for each task."""
    folder = tmp_path_factory.mktemp("world")
    words = tokenizer(["</s>", "?", *WORDS], unknown="?", eos_token="</s>", unk_token="?")
    save_model(small_llama(2), words, folder / "target")
    save_model(small_llama(1), words, folder / "draft")
    generator = torch.Generator().manual_seed(0)
    rows = [" ".join(WORDS[i] for i in torch.randint(14, (12,), generator=generator)) for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    shared = {
        "trainer": {"max_steps": 4, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "data": {
            "train": {"path": f"{folder}/text.jsonl"},
            "validation": {"held": {"path": f"{folder}/text.jsonl", "limit": 8}},
            "prompts": {"p": {"path": f"{folder}/text.jsonl", "limit": 3, "prompt_tokens": 4}},
            "max_length": 16,
            "batch_size": 4,
            "cache_dir": f"{folder}/cache",
        },
    }
    shape = {"hidden_size": 8, "layers": 1, "heads": 2, "max_position_embeddings": 64}
    language_model = {"task": "language-model", "model": {"tokenizer": f"{folder}/target", "shape": shape}}
    pair = {"model": {"target": f"{folder}/target", "draft": f"{folder}/draft"}}
    for name, own in (("lm", language_model), ("pair", pair)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(shared | own, sort_keys=False))
    return folder


@pytest.fixture
def run(world, tmp_path, monkeypatch, capsys):
    """`main` on arguments, in a folder of its own; returns its exit code, and what it printed on either stream."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)

    def call(*arguments):
        from tempspec.__main__ import main

        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield call
    logger.setLevel(before)  # other tests read what it says
