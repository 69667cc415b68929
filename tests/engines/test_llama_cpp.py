"""What a real llama-server serves is what is measured here: `TEMPSPEC_LLAMA=llama-server pytest -m engines`."""

import json
import math
import os
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.engine_servers import LlamaServer, served
from tempspec.interfaces import Request
from tempspec.models.loading import save_model
from tempspec.modules.engine_forms import LlamaCpp
from tempspec.modules.openai_client import Server, call
from tests.gguf_file import TEMPLATE, byte_level, write_gguf
from tests.tiny import llama

pytestmark = pytest.mark.engines

DRAFTED = 3
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A target, a draft that is near to it and one that is not, as folders and as GGUF files, and a configuration."""
    folder, tokenizer = tmp_path_factory.mktemp("llama"), byte_level()
    tokenizer.chat_template = TEMPLATE
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = SHAPE | {"context": 512} | ends
    models = {
        "target": llama(1, len(tokenizer), 2, gain=12.0, **shape),
        "near": llama(1, len(tokenizer), 2, gain=9.0, **shape),
        "far": llama(5, len(tokenizer), 1, gain=12.0, **shape),
    }
    for name, model in models.items():
        save_model(model, tokenizer, folder / name)
        write_gguf(folder / f"{name}.gguf", model, tokenizer, "F32")
    rows = [{"prompt": f"the {one} cat sat on the {other} mat"} for one in "abcde" for other in "fghi"]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sweep = {"samples": 2, "max_new_tokens": 32, "target_temperatures": [0.0, 1.0]}
    said = {
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "target": f"{folder}/target",
            "draft": f"{folder}/near",
            "loading": {"dtype": "float32"},
            "length": {"class_path": "FixedLength", "init_args": {"tokens": DRAFTED}},
            "sweep": sweep | {"generation_temperatures": [0.0, 1.5]},
        },
        "data": {"prompts": {"p": {"path": f"{folder}/p.jsonl", "chat": True}}, "cache_dir": f"{folder}/cache"},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(said))
    return folder


@pytest.fixture(scope="module")
def speculating(world):
    """Starts a llama-server that drafts with a model, the near one by default."""
    program = Path(os.environ.get("TEMPSPEC_LLAMA", ""))
    if not program.is_file():
        pytest.fail("set TEMPSPEC_LLAMA to the program llama-server", pytrace=False)

    def start(draft="near", tokens=DRAFTED):
        options = ["-md", f"{world}/{draft}.gguf", "--spec-type", "draft-simple", "--spec-draft-n-max", str(tokens)]
        options += ["--spec-draft-n-min", "0", "--spec-draft-p-min", "0"]
        return served(LlamaServer, program, world / "target.gguf", *options, log=world / "server.log")

    return start


@pytest.fixture(scope="module")
def server(speculating):
    with speculating() as server:
        yield server


def generate(tempspec, world, run, *more):
    code, _, error = tempspec("generate", "--config", world / "c.yaml", "--run", run, *more)
    assert code == 0, error
    return pq.read_table(run / "generate/generated.parquet").to_pylist()


def test_text_at_temperature_0_is_that_of_generate(world, server, tempspec, tmp_path):
    here = generate(tempspec, world, tmp_path / "here")
    there = generate(tempspec, world, tmp_path / "there", "--server", server.url)
    cold = [(one, other) for one, other in zip(here, there, strict=True) if one["generation_temperature"] == 0]
    assert len(cold) == 20
    assert all(one == other for one, other in cold)


def test_an_end_token_cannot_be_ignored(world, server, tempspec, tmp_path):
    line = ("generate", "--config", world / "c.yaml", "--run", tmp_path, "--server", server.url)
    code, _, error = tempspec(*line, "--model.sweep.stop_at_eos", "false")
    assert (code, error.count("\n")) == (2, 1)
    assert "llama.cpp cannot write past an end token" in error
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_truncation_is_applied_after_the_temperature(server):
    """In its own order of samplers, which the control leaves it, min_p cuts the distribution of T = 1."""
    temperature, min_p = 0.5, 0.3
    asked = [Request((one, 5, 9), temperature, max_new_tokens=32, min_p=min_p, seed=one) for one in range(1, 5)]
    ours = [LlamaCpp().body(one, "m", stops=True) for one in asked]
    own = [{name: value for name, value in body.items() if name != "samplers"} for body in ours]

    def post(body):
        return call(Server(server.url), LlamaCpp.path, body)

    def impossible(bodies):
        places = [place for body in bodies for place in LlamaCpp().sampled(post, body, 32, 20)]
        assert len(places) > 64
        least = temperature * math.log(min_p) - 1e-3
        return sum(law[token] - max(law.values()) < least for law, token in places)

    assert impossible(ours) == 0
    assert impossible(own) > 0


def test_it_drafts_by_argmax_and_agrees_with_a_sweep_that_does(world, server, checked):
    code, found = checked(world, server.url)
    assert code == 1
    assert found["T = 1"][1].startswith("the engine drafts by argmax")
    code, found = checked(world, server.url, "--model.sweep.draft_temperatures", "0.0")
    assert code == 0, found
    assert found["T = 0"][1] == found["T = 1"][1] == "agrees"
    assert found["text at T = 0"] == (True, "agrees: 20 of 20 texts are equal")
    assert found["tokenizer"] == found["chat template"] == (True, "agrees")


def test_another_draft_and_another_length_are_named(world, speculating, checked):
    with speculating("far") as server:
        code, found = checked(world, server.url)
    assert code == 1
    assert found["T = 0"][1].startswith("another draft")
    with speculating(tokens=DRAFTED - 1) as server:
        assert "--spec-draft-n-max 3" in checked(world, server.url)[1]["length"][1]


def test_its_counters_are_those_of_its_answers(world, server, tempspec, tmp_path):
    page = urllib.request.urlopen(f"{server.url}/metrics").read()
    (tmp_path / "m.txt").write_bytes(page)
    code, printed, error = tempspec("import-results", tmp_path / "m.txt", "--run", world / "run/serve-check/same")
    assert code == 0, error
    assert "engine's counters" in printed


def test_a_teacher_is_refused_in_one_line(world, server, tempspec, tmp_path):
    options = ("--cache-teacher", "--model.teacher", {"folder": str(tmp_path / "t"), "tokens": 8})
    line = ("generate", "--config", world / "c.yaml", "--run", tmp_path, "--server", server.url, *options)
    code, _, error = tempspec(
        *line, "--data.train", {"path": f"{world}/p.jsonl", "text": "prompt"}, "--data.max_length", "64"
    )
    assert code == 2
    assert "is llama.cpp: expected vLLM or SGLang" in error
