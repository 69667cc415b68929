"""Each verdict is reached from figures that an engine has truly produced, over HTTP."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tempspec.cli.serve_check import check
from tempspec.cli.serve_check.asking import LiveEngine
from tempspec.cli.serve_check.decoded import decoded, due
from tempspec.errors import UserError
from tempspec.metrics.goodput import speeds_of
from tempspec.models.loading import save_model
from tempspec.modules.openai_client import Server
from tempspec.plugins.drafters import CausalLM, PromptLookup
from tempspec.plugins.lengths import FixedLength
from tests.serving import pages, serving
from tests.tiny import llama, words

from .server import llama_cpp, speculating

PARTS = {"drafter": CausalLM(), "length": FixedLength(3)}
PLAIN = {"drafter": PromptLookup(longest_ngram=24, shortest_ngram=24), "length": FixedLength(1)}


@pytest.fixture(scope="module")
def models():
    """A target, a draft that is near to it, and one that is not."""
    target = llama(0, 24, 2, gain=12.0, eos_token_id=None)
    near = llama(0, 24, 2, gain=9.0, eos_token_id=None)
    return target, near, llama(5, 24, 1, gain=9.0, eos_token_id=None)


@pytest.fixture(scope="module")
def config(models, tmp_path_factory):
    """A configuration of the target and the near draft, with a truncation."""
    folder = tmp_path_factory.mktemp("served")
    for name, model in zip(("target", "near", "far"), models, strict=True):
        save_model(model, words(), folder / name)
    rows = [{"prompt": " ".join(f"w{1 + (n * k) % 23}" for k in range(1, 6))} for n in range(1, 17)]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = {
        "run": str(folder / "run"),
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        "model": {
            "target": str(folder / "target"),
            "draft": str(folder / "near"),
            "length": {"class_path": "FixedLength", "init_args": {"tokens": 3}},
            "sweep": {
                "target_temperatures": [0.0, 1.0],
                "samples": 4,
                "max_new_tokens": 24,
                "top_k": 6,
                "stop_at_eos": False,
            },
        },
        "data": {"prompts": {"p": {"path": str(folder / "p.jsonl")}}, "cache_dir": str(folder / "cache")},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(said))
    return folder / "c.yaml"


@pytest.fixture(scope="module")
def ours(config):
    return decoded(["--config", str(config)], 16, "TokenwiseRejection")


def findings(ours, server):
    server.answer.prepare([one for t in ours.sweep.target_temperatures for _, one in due(ours, t)])
    engine = LiveEngine(Server(server.url, concurrency=2, retries=0))
    return {(one.about, one.agrees): one.says for one in check(ours, engine)}


@pytest.mark.parametrize(
    ("options", "agrees", "says"),
    [
        ({}, True, "agrees"),
        ({"records": False}, True, "agrees"),
        ({"draft_temperature": 0.0}, False, "the engine drafts by argmax"),
        ({"cut_draft": False}, False, "the engine truncates only the target"),
    ],
)
def test_how_an_engine_samples_its_draft_is_named(models, ours, options, agrees, says):
    target, near, _ = models
    with speculating(target, near, PARTS, words(), **options) as server:
        found = findings(ours, server)
    assert found["T = 1", agrees].startswith(says)
    assert found["T = 0", True] == "agrees"
    assert found["tokenizer", True] == "agrees"
    assert found["text at T = 0", True] == "agrees: 16 of 16 texts are equal"


@pytest.mark.parametrize(
    ("options", "agrees", "says"),
    [
        ({}, True, "agrees"),
        ({"draft_temperature": 0.0}, False, "the engine drafts by argmax: its figures are those of"),
    ],
)
def test_an_engine_without_positions_is_checked_by_totals(models, ours, options, agrees, says):
    target, near, _ = models
    with llama_cpp(target, near, PARTS, words(), **options) as server:
        found = findings(ours, server)
    assert found["T = 1", agrees].startswith(says)
    assert found["T = 0", True] == "agrees"
    assert found["text at T = 0", True] == "agrees: 16 of 16 texts are equal"
    assert not any(about in ("length", "counts") for about, _ in found)


def test_other_lengths_of_an_engine_without_positions(models, ours):
    target, near, _ = models
    with llama_cpp(target, near, PARTS | {"length": FixedLength(2)}, words()) as server:
        says = findings(ours, server)["length", False]
    assert float(says.split()[3]) < 2  # "the engine drafts 1.89 tokens per round, ..."
    assert says.endswith("start llama-server with --spec-draft-n-max 3 --spec-draft-n-min 0 --spec-draft-p-min 0")


def test_an_engine_that_drafts_by_argmax_and_a_sweep_that_does(models, config, tmp_path):
    target, near, _ = models
    few = ["--config", str(config), "--run", str(tmp_path), "--model.sweep.draft_temperatures", "0.0"]
    ours = decoded(few, 16, "TokenwiseRejection")
    with llama_cpp(target, near, PARTS, words(), draft_temperature=0.0) as server:
        assert findings(ours, server)["T = 1", True] == "agrees"
    with speculating(target, near, PARTS, words()) as server:
        assert findings(ours, server)["T = 1", False].startswith("the engine samples its draft")


def test_an_engine_that_can_only_draft_by_argmax_is_believed(config, models):
    """Eight texts are too few to tell both columns apart."""
    target, near, _ = models
    ours = decoded(["--config", str(config), "--model.sweep.samples", "1"], 8, "TokenwiseRejection")
    with llama_cpp(target, near, PARTS, words(), draft_temperature=0.0) as server:
        says = findings(ours, server)["T = 1", False]
    assert says.endswith("; llama.cpp always does so, and model.sweep.draft_temperatures: 0.0 measures it")


def test_an_end_that_an_engine_cannot_ignore_is_refused_at_once(models, config, run, tmp_path):
    target, near, _ = models
    with llama_cpp(target, near, PARTS, words()) as server:
        code, _, error = run("serve-check", "--config", config, "--server", server.url, "--run", tmp_path)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: llama.cpp cannot write past an end token")
    assert not list(tmp_path.rglob("*.parquet"))


def test_another_draft_and_another_target_are_named(models, ours):
    target, _, far = models
    with speculating(target, far, PARTS, words()) as server:
        found = findings(ours, server)
    assert found["T = 0", False] == "another draft: its figures are those of none of our columns (same)"
    assert found["T = 1", False] == "another draft, as at T = 0, where nothing is sampled"
    with speculating(far, far, PARTS, words()) as server:
        assert "nats less likely: another target, or a fault" in findings(ours, server)["text at T = 0", False]


def test_other_lengths_and_tokenizers_are_named(models, ours):
    target, near, _ = models
    with speculating(target, near, PARTS | {"length": FixedLength(2)}, words()) as server:
        server.answer.tokenized = lambda body: [7]
        found = findings(ours, server)
    assert found["length", False].startswith("the engine drafts 2 tokens per round, the configuration 3")
    assert found["tokenizer", False].startswith(
        "another tokenizer: a prompt's tokens differ from token 1 on (1 there, "
    )


def test_the_command_says_it_and_ends_with_0_or_1(models, config, run, tmp_path):
    target, near, _ = models
    for options, code, last in (({}, 0, "agrees"), ({"draft_temperature": 0.0}, 1, "differs")):
        with speculating(target, near, PARTS, words(), **options) as server:
            few = ("--prompts", 8, "--model.sweep.samples", 2, "--run", tmp_path / "run")
            found, printed, error = run("serve-check", "--config", config, "--server", server.url, *few)
        assert (found, printed.splitlines()[-1]) == (code, last), error
        assert "position 3" in printed
    kept = json.loads((tmp_path / "run/serve-check/serve_check.json").read_text())
    assert kept["speeds"] == []
    assert kept["kind"] == "vLLM 0.32.0"
    assert {one["about"] for one in kept["findings"]} >= {"T = 0", "T = 1", "text at T = 0", "speed"}


def test_rows_that_predict_has_decoded_are_taken(config, run, tmp_path):
    few = ["--config", str(config), "--model.sweep.samples", "1", "--run", str(tmp_path / "run")]
    code, _, error = run("predict", "--model.sweep.timing_prompts", 0, *few)
    assert code == 0, error
    path = tmp_path / "run/predict/predictions.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"text": "of predict"} for row in rows]), path)
    found = decoded(few, 8, "TokenwiseRejection").rows["same"]
    took = {(row["target_temperature"], row["draft_temperature"]) for row in found if row["text"] == "of predict"}
    assert took == {(0.0, 0.0), (1.0, 1.0)}
    assert {(row["target_temperature"], row["draft_temperature"]) for row in found} == took | {(1.0, 0.0)}


@pytest.mark.parametrize(
    ("said", "arguments", "says"),
    [
        ({"version": {"version": "0.32.0"}}, ["--prompts", "5"], "--prompts must be 6 or more"),
        ({}, [], "is unknown: expected an engine that speculates"),
        ({"version": {"version": "0.32.0"}}, ["--concurrency", "0"], "server.concurrency must be more than 0"),
        ({"version": {"version": "0.32.0"}}, ["--speed", "1,x"], "--speed must be numbers of 1 or more, such as 1,4"),
    ],
)
def test_what_cannot_be_checked_is_one_line(said, arguments, says, config, run):
    with serving(pages(**said)) as server:
        code, _, error = run("serve-check", "--config", config, "--server", server.url, *arguments)
    assert code == 2
    assert says in error
    assert error.count("\n") == 1


def test_an_engine_that_tells_nothing_is_one_line(models, ours):
    answer = {"choices": [{"text": "", "token_ids": [1]}], "usage": {"completion_tokens": 1}, "metrics": None}
    with serving(pages(version={"version": "0.32.0"}, v1__completions=answer)) as server:
        with pytest.raises(UserError, match="does not speculate, or does not tell what it accepts; start vLLM with"):
            list(check(ours, LiveEngine(Server(server.url))))


def test_rounds_without_a_draft_are_named_as_a_definition(models, config):
    target = models[0]
    parts = {"drafter": PromptLookup(longest_ngram=3), "length": FixedLength(3)}
    options = ["--config", str(config), "--model.drafter", "PromptLookup", "--model.sweep.top_k", "0"]
    rows = decoded([*options, "--run", str(config.parent / "lookup")], 16, "TokenwiseRejection")
    assert rows.measured == {"draft": "", "checkpoint": ""}  # as predict says it: the report takes the figures then
    with speculating(target, None, parts, words()) as server:
        found = findings(rows, server)
    assert found["T = 1", True].startswith("agrees")
    assert found["counts", True].startswith("counts differ by definition: the engine's mean acceptance length, ")


def test_no_more_requests_are_in_flight_than_there_are(models, config, run, tmp_path):
    target, near, _ = models
    with speculating(target, near, PARTS, words()) as server:
        few = ("--prompts", 8, "--model.sweep.samples", 1, "--run", tmp_path / "run")
        code, _, error = run("serve-check", "--config", config, "--server", server.url, "--speed", "2,9", *few)
    assert code == 2
    assert "--speed must be at most the 8 requests of a temperature, got 9: raise --prompts" in error


@pytest.mark.slow
def test_speeds_beside_a_plain_server_say_what_to_draft(models, config, run, tmp_path):
    target, near, _ = models
    with speculating(target, near, PARTS, words()) as server, speculating(target, None, PLAIN, words()) as plain:
        few = ("--prompts", 8, "--model.sweep.samples", 1, "--run", tmp_path / "run")
        urls = ("--server", server.url, "--plain", plain.url, "--speed", "2,4")
        _, printed, error = run("serve-check", "--config", config, *urls, *few)
    assert "without a draft" in printed, error
    for temperature in (0, 1):
        for in_flight in (2, 4):
            assert f"T = {temperature}, {in_flight} in flight: draft " in printed
    speeds = speeds_of(json.loads((tmp_path / "run/serve-check/serve_check.json").read_text())["speeds"])
    assert [(one.temperature, one.concurrency, one.drafted) for one in speeds] == [
        (temperature, in_flight, drafted) for temperature in (0, 1) for in_flight in (2, 4) for drafted in (3, 0)
    ]
    assert all(one.tokens == 23 for speed in speeds for one in speed.requests)
    assert all((one.rounds == 23) == (speed.drafted == 0) for speed in speeds for one in speed.requests)


@pytest.mark.slow
def test_predict_says_what_to_draft_in_an_engine_that_was_timed(models, config, run, tmp_path):
    target, near, _ = models
    few = ("--config", config, "--model.sweep.samples", 1, "--run", tmp_path / "run")
    with speculating(target, near, PARTS, words()) as server, speculating(target, None, PLAIN, words()) as plain:
        urls = ("--server", server.url, "--plain", plain.url, "--speed", 2)
        run("serve-check", *urls, "--prompts", 8, *few)
    code, printed, error = run("predict", "--model.sweep.timing_prompts", 0, *few)
    assert code == 0, error
    for temperature in (0, 1):
        assert f"in vLLM 0.32.0: p, T = {temperature}, 2 in flight: " in printed
