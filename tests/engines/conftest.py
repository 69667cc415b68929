"""Models that a real vLLM serves on a CPU, and the folder where it is: `pytest -m engines` needs TEMPSPEC_VLLM."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.engine_servers import VllmServer, served
from tempspec.models.loading import save_model
from tests.tiny import llama, words

DRAFTED = 3
HEADS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}
"""Heads of 32: vLLM's attention on a CPU has none that are narrower."""

TEMPLATE = "{% for one in messages %}{{ one['content'] }} w2 {% endfor %}{% if add_generation_prompt %}w3{% endif %}"


@pytest.fixture(scope="session")
def vllm():
    """The folder with `venv/bin/vllm`."""
    folder = Path(os.environ.get("TEMPSPEC_VLLM", ""))
    if not (folder / "venv/bin/vllm").exists():
        pytest.fail("set TEMPSPEC_VLLM to a folder with venv/bin/vllm", pytrace=False)
    return folder


def tokenizer():
    """One with a chat template."""
    words_ = words()
    words_.chat_template = TEMPLATE
    return words_


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a target, a draft that is near to it, one that is not, and a configuration of the first two."""
    folder = tmp_path_factory.mktemp("engines")
    shape = HEADS | {"context": 256, "eos_token_id": None}
    models = {
        "target": llama(0, 24, 2, gain=6.0, **shape),
        "near": llama(0, 24, 2, gain=5.0, **shape),
        "far": llama(5, 24, 1, gain=6.0, **shape),
    }
    for name, model in models.items():
        save_model(model, tokenizer(), folder / name)
    rows = [{"prompt": " ".join(f"w{1 + (n * k) % 23}" for k in range(1, 8))} for n in range(1, 21)]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sweep = {"samples": 2, "max_new_tokens": 32, "stop_at_eos": False, "target_temperatures": [0.0, 1.0]}
    sweep |= {"generation_temperatures": [0.0, 1.0], "write_every": 0.5}
    model = {"target": f"{folder}/target", "draft": f"{folder}/near", "loading": {"dtype": "float32"}, "sweep": sweep}
    said = {
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        "model": model | {"length": {"class_path": "FixedLength", "init_args": {"tokens": DRAFTED}}},
        "data": {"prompts": {"p": {"path": f"{folder}/p.jsonl", "chat": True}}, "cache_dir": f"{folder}/cache"},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(said))
    return folder


@pytest.fixture(scope="session")
def deep(world, tmp_path_factory):
    """A configuration of a target of eight layers, whose states a head reads, and of its own text to learn from."""
    folder = tmp_path_factory.mktemp("deep")
    target = llama(0, 24, 8, gain=6.0, **HEADS, context=256, eos_token_id=None)
    save_model(target, tokenizer(), folder / "target")
    starts = torch.arange(1, 24).repeat(8)[:, None]
    written = target.generate(starts, attention_mask=torch.ones_like(starts), do_sample=True, max_new_tokens=63)
    texts = [{"text": " ".join(f"w{one}" for one in row if one)} for row in written.tolist()]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, texts)))
    said = yaml.safe_load((world / "c.yaml").read_text())
    del said["model"]["draft"]
    head = {"class_path": "Eagle3", "init_args": {"draft_vocabulary": 12}}
    said["model"] |= {"target": f"{folder}/target", "head": head, "temperature": 1.0}
    said["model"] |= {"optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.01}}}
    said["data"] |= {"train": f"{folder}/t.jsonl", "max_length": 64, "batch_size": 16, "cache_dir": f"{folder}/cache"}
    (folder / "c.yaml").write_text(yaml.safe_dump(said | {"run": f"{folder}/run"}))
    return folder


@pytest.fixture(scope="session")
def speculating(vllm, world):
    """Starts a vLLM that drafts with a model; by default as predict does, with the near draft."""

    def start(draft="near", *options, sampled=True, **more):
        speculation = {"method": "draft_model", "model": f"{world}/{draft}", "num_speculative_tokens": DRAFTED}
        speculation |= {"draft_sample_method": "probabilistic"} if sampled else {}
        options = ("--max-logprobs", "24", *options)
        return served(
            VllmServer, vllm, world / "target", *options, log=world / "vllm.log", speculation=speculation, **more
        )

    return start


@pytest.fixture
def tempspec(capsys):
    """The command line on arguments; returns its exit code, and what it printed on either stream."""

    def call(*arguments):
        from tempspec.__main__ import main

        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, re.sub(r"\s+", " ", printed.out), printed.err

    return call


@pytest.fixture
def checked(tempspec):
    """serve-check on a configuration's folder; returns its exit code, and what it says of each thing."""

    def call(world, url, *more):
        code, *_ = tempspec("serve-check", "--server", url, "--config", world / "c.yaml", "--run", world / "run", *more)
        findings = json.loads((world / "run/serve-check/serve_check.json").read_text())["findings"]
        return code, {one["about"]: (one["agrees"], one["says"]) for one in findings}

    return call
