"""What a real vLLM serves is what is measured here: `TEMPSPEC_VLLM=FOLDER pytest -m engines`."""

import json
import shutil
import signal
import subprocess
import sys
import time

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.engine_servers import VllmServer, served
from tempspec.core.sparse import SparseLogits
from tempspec.core.tails import bounds
from tempspec.metrics.goodput import speeds_of

pytestmark = pytest.mark.engines

MANY = ("--model.sweep.samples", "60")


@pytest.fixture(scope="module")
def server(speculating):
    with speculating() as server:
        yield server


def rows(folder):
    return pq.read_table(folder / "generate" / "generated.parquet").to_pylist()


def generate(world, run, *more):
    return ("generate", "--config", world / "c.yaml", "--run", run, *more)


def test_text_at_temperature_0_is_that_of_generate(world, server, tempspec, tmp_path):
    assert tempspec(*generate(world, tmp_path / "here"))[0] == 0
    assert tempspec(*generate(world, tmp_path / "there", "--server", server.url))[0] == 0
    here, there = rows(tmp_path / "here"), rows(tmp_path / "there")
    assert [row["key"] for row in there] == [row["key"] for row in here]
    cold = [(one, other) for one, other in zip(here, there, strict=True) if one["generation_temperature"] == 0]
    assert len(cold) == 20
    assert all(one == other for one, other in cold)


def test_min_p_beside_speculation_writes_nothing(world, server, tempspec, tmp_path):
    code, _, error = tempspec(*generate(world, tmp_path / "run", "--server", server.url, "--model.sweep.min_p", "0.2"))
    assert code == 2
    assert error.count("\n") == 1
    assert "model.sweep.min_p" in error
    assert not list(tmp_path.rglob("*.parquet"))


def started(world, run, url, *more):
    line = [str(part) for part in generate(world, run, "--server", url, *MANY, *more)]
    return subprocess.Popen([sys.executable, "-m", "tempspec", *line])


def until_some_rows(run, process):
    while not list((run / "generate").glob("generated.parts/*.parquet")):
        assert process.poll() is None, "the client ended before it was killed"
        time.sleep(0.05)


def is_whole(world, run):
    found = rows(run)
    assert len(found) == len({row["key"] for row in found}) == 20 + 20 * 60
    assert all(len(row["response_ids"]) == 32 for row in found)


def test_a_killed_client_loses_and_doubles_nothing(world, server, tempspec, tmp_path):
    client = started(world, tmp_path, server.url)
    until_some_rows(tmp_path, client)
    client.kill()
    client.wait()
    assert tempspec(*generate(world, tmp_path, "--server", server.url, *MANY))[0] == 0
    is_whole(world, tmp_path)


def test_a_server_that_is_killed_and_comes_again(world, vllm, tmp_path):
    first = VllmServer(vllm, world / "target", log=world / "killed.log")
    first.wait()
    client = started(world, tmp_path, f"{{url: '{first.url}', retries: 20}}")
    until_some_rows(tmp_path, client)
    first.end(signal.SIGKILL)
    second = VllmServer(vllm, world / "target", log=world / "killed.log", port=first.port)
    try:
        assert client.wait(600) == 0
    finally:
        second.end()
    is_whole(world, tmp_path)


def test_serve_check_agrees_with_the_right_server(world, server, checked):
    code, found = checked(world, server.url)
    assert code == 0, found
    assert found["T = 0"][1] == found["T = 1"][1] == "agrees"
    assert found["text at T = 0"] == (True, "agrees: 20 of 20 texts are equal")
    assert found["tokenizer"] == found["chat template"] == (True, "agrees")


def test_the_default_server_drafts_by_argmax(world, speculating, checked):
    with speculating(sampled=False) as server:
        code, found = checked(world, server.url)
    assert code == 1
    assert found["T = 0"] == (True, "agrees")
    assert found["T = 1"][1].startswith("the engine drafts by argmax")


def test_another_draft_and_another_template_are_named(world, speculating, checked, tmp_path):
    (tmp_path / "t.jinja").write_text("{% for one in messages %}w4 {{ one['content'] }}{% endfor %}")
    with speculating("far", "--chat-template", str(tmp_path / "t.jinja")) as server:
        code, found = checked(world, server.url)
    assert code == 1
    assert found["T = 0"][1].startswith("another draft")
    assert found["T = 1"][1].startswith("another draft")
    assert found["chat template"][1].startswith("another chat template")
    assert found["tokenizer"] == (True, "agrees")


def test_a_served_teacher_is_the_one_that_is_cached_here(world, server, tempspec, tmp_path):
    """Of text that the engine has written itself; then fit learns without the target's weights."""
    bare = shutil.copytree(world / "target", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert tempspec(*generate(world, tmp_path, "--server", server.url))[0] == 0
    teacher = {"tokens": 8, "temperatures": [0.5, 1.0, 2.0], "shard_rows": 16}
    options = ("--data.train", tmp_path / "generate/generated.parquet", "--data.max_length", "64")
    caches = {}
    for name, more in {"here": (), "there": ("--server", server.url, "--model.target", bare)}.items():
        told = ("--cache-teacher", "--model.teacher", teacher | {"folder": str(tmp_path / name)})
        code, _, error = tempspec(*generate(world, tmp_path, *options, *told, *more))
        assert code == 0, error
        caches[name] = [datasets.Dataset.from_file(str(file)) for file in sorted((tmp_path / name).glob("*.arrow"))]
    ours, theirs = (datasets.concatenate_datasets(shards).with_format("numpy") for shards in caches.values())
    assert len(ours) == len(theirs) > 40  # of 60, those that are held out excepted
    for one, other in zip(ours, theirs, strict=True):
        assert_alike(*(sparse(row, 8, (0.5, 1.0, 2.0)) for row in (one, other)))
    told = ("--model.target", bare, "--model.teacher", teacher | {"folder": str(tmp_path / "there")})
    fit = ("fit", "--config", world / "c.yaml", "--run", tmp_path, *options, *told, "--trainer.max_steps", "2")
    code, _, error = tempspec(*fit)
    assert code == 0, error


def sparse(row, kept, temperatures):
    token, logit, logsum = (torch.tensor(row[name]) for name in ("token", "logit", "logsum"))
    shape = (-1, kept)
    return SparseLogits(token.view(shape).long(), logit.view(shape), logsum.view(-1, len(temperatures)), temperatures)


def assert_alike(ours, theirs):
    """The laws at T = 1, token by token; at other temperatures the tail lies within its bounds."""
    logq_NV = torch.full((len(ours.token_NK), 24), 1 / 24).log()
    at_N = torch.ones(len(logq_NV))
    for one, other in zip(dense(ours, at_N, logq_NV), dense(theirs, at_N, logq_NV), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    for place, temperature in enumerate(theirs.temperatures):
        low_N, high_N = bounds(theirs.logit_NK.double(), 24, temperature)
        shift_N = theirs.logit_NK[:, 0] - ours.logit_NK[:, 0]
        for sum_N in (theirs.logsum_NH[:, place], ours.logsum_NH[:, place] + shift_N / temperature):
            assert (sum_N >= low_N - 1e-3).all()
            assert (sum_N <= high_N + 1e-3).all()


def dense(kept, at_N, logq_NV):
    """Probabilities at their tokens' places, and the tail's."""
    logp_NC, _ = kept.laws(at_N, logq_NV)
    return torch.zeros_like(logq_NV).scatter(-1, kept.token_NK, logp_NC[:, :-1].exp()), logp_NC[:, -1].exp()


def test_speeds_beside_a_server_without_a_draft(world, server, vllm, tempspec, tmp_path):
    with served(VllmServer, vllm, world / "target", log=world / "plain.log") as plain:
        urls = ("--server", server.url, "--plain", plain.url, "--speed", "1,4")
        run = ("--config", world / "c.yaml", "--run", tmp_path)
        _, printed, error = tempspec("serve-check", *urls, *run)
    assert "without a draft" in printed, error
    speeds = speeds_of(json.loads((tmp_path / "serve-check/serve_check.json").read_text())["speeds"])
    assert [(one.temperature, one.concurrency, one.drafted) for one in speeds] == [
        (temperature, in_flight, drafted) for temperature in (0, 1) for in_flight in (1, 4) for drafted in (3, 0)
    ]
    for speed in speeds:
        step = speed.step()
        assert 0 < float(step.numerator_SW[0, 0] / step.denominator_SW[0, 0]) < 10
        assert all(one.tokens == 31 for one in speed.requests)
        assert all(one.rounds < 31 if speed.drafted else one.rounds == 31 for one in speed.requests)


def without_d2t(head, folder):
    """A copy that names no ids: an engine then drafts the first ones of the target's."""
    folder = shutil.copytree(head, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if name != "d2t"}, folder / "model.safetensors")
    return folder


def test_an_exported_head_accepts_there_what_it_does_here(deep, vllm, tempspec, checked, tmp_path):
    options = ("--trainer.max_steps", "80", "--trainer.limit_val_batches", "0")
    code, _, error = tempspec("fit", "--config", deep / "c.yaml", *options)
    assert code == 0, error
    head = deep / "run/fit/head"
    more = ("--model.draft", head)
    for folder, sampled, says in (
        (head, True, ("agrees", "agrees")),
        (head, False, ("agrees", "the engine drafts by argmax")),
        (without_d2t(head, tmp_path / "head"), True, ("another draft", "another draft")),
    ):
        speculation = {"method": "eagle3", "model": str(folder), "num_speculative_tokens": 3}
        speculation |= {"draft_sample_method": "probabilistic"} if sampled else {}
        with served(VllmServer, vllm, deep / "target", log=tmp_path / "vllm.log", speculation=speculation) as server:
            code, found = checked(deep, server.url, *more)
        assert found["text at T = 0"] == (True, "agrees: 20 of 20 texts are equal")
        assert found["T = 0"][1].startswith(says[0]), found
        assert found["T = 1"][1].startswith(says[1]), found
        assert code == int(says != ("agrees", "agrees"))
