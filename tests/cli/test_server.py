"""generate from a server: a real `transformers serve`, and a stand-in that fails on purpose."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest
import rich

from tempspec.cli.progress import PaceLines
from tests.serving import serving

OPTIONS = ("--model.sweep.max_new_tokens", 6, "--model.sweep.generation_temperatures", "[0.0, 1.0]")
SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def served(world):
    """The address of `transformers serve` with the world's target."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", SERVE, "serve", str(world / "target"), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "transformers serve ended"
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def generated(run, world, folder, *more):
    code, _, error = run("generate", "--config", world / "pair.yaml", "--run", folder, *OPTIONS, *more)
    assert code == 0, error
    return pq.read_table(folder / "generate" / "generated.parquet").to_pylist()


def test_a_real_server_gives_what_the_target_gives_here(run, world, served, tmp_path):
    here = generated(run, world, tmp_path / "here")
    there = generated(run, world, tmp_path / "there", "--server", served)
    assert [row.keys() for row in there] == [row.keys() for row in here]
    for ours, theirs in zip(here, there, strict=True):
        assert (ours["key"], ours["prompt_ids"]) == (theirs["key"], theirs["prompt_ids"])
        assert theirs["tokenizer"] == ours["tokenizer"]
        if ours["generation_temperature"] == 0:
            assert theirs["response"] == ours["response"]
    record = json.loads((tmp_path / "there" / "generate" / "provenance.json").read_text())
    kind = {"kind": "transformers serve", "form": "transformers"}
    assert record["server"] == {"url": served, "model": f"{world}/target"} | kind
    assert record["count"] == len(there)


NOT_YET = "The min_p and logit_bias sampling parameters are not yet supported with speculative decoding."


class Engine(BaseHTTPRequestHandler):
    """Answers like an engine that returns ids; its server's `fate` decides what goes wrong."""

    def do_GET(self):
        said = {"/version": {"version": "0.32.0"}, "/v1/models": {"data": [{"id": "served", "owned_by": "vllm"}]}}
        self.answer(200 if self.path in said else 404, said.get(self.path, {"detail": "Not Found"}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.seen.append((self.headers.get("Authorization"), body))
            status = server.fate(len(server.seen))
        if status != 200:
            self.answer(status, {"error": "out of order"})
            return
        if server.speculates and body.get("min_p") and body["temperature"] > 0:
            self.answer(400, {"error": {"message": NOT_YET, "type": "BadRequestError", "param": None, "code": 400}})
            return
        ids = [2 + (sum(body["prompt"]) + place) % 14 for place in range(body["max_tokens"])]
        text = "".join(f" w{token - 2}" for token in ids)
        self.answer(200, {"choices": [{"text": text, "token_ids": ids, "finish_reason": "length"}]})

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def engine(monkeypatch):
    """A stand-in server; waits between retries take no time."""
    monkeypatch.setattr("tempspec.modules.openai_client.time.sleep", lambda _: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.lock, server.seen, server.fate, server.speculates = threading.Lock(), [], lambda _: 200, False
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_engines_own_ids_are_kept_and_everything_is_said(run, world, engine, tmp_path):
    rows = generated(run, world, tmp_path / "run", "--server", engine.url, "--model.sweep.top_k", 5)
    for row in rows:
        assert row["response_ids"] == [2 + (sum(row["prompt_ids"]) + place) % 14 for place in range(6)]
    _, body = engine.seen[-1]
    assert body["model"] == "served"
    assert (body["top_k"], body["top_p"], body["min_p"], body["ignore_eos"]) == (5, 1.0, 0.0, False)
    code, _, error = run("fit", "--config", tmp_path / "run/generate/config.yaml", "--print_config")
    assert code == 0, error


def llama_cpp(path, body):
    """Answers in the form that a llama-server of November 2026 does."""
    if path == "/v1/models":
        return 200, {"data": [{"id": "m.gguf", "owned_by": "llamacpp"}]}
    if path != "/completion":
        return 404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}
    ids = [2 + (sum(body["prompt"]) + place) % 14 for place in range(body["n_predict"])]
    return 200, {"content": "", "tokens": ids, "stop_type": "limit" if body["temperature"] else "eos"}


def sglang(path, body):
    """Answers in the form of SGLang's documentation."""
    if path == "/get_server_info":
        return 200, {"model_path": "target", "version": "0.5.6"}
    if path != "/generate":
        return 404, {"detail": "Not Found"}
    params = body["sampling_params"]
    ids = [2 + (sum(body["input_ids"]) + place) % 14 for place in range(params["max_new_tokens"])]
    finish = {"type": "length"} if params["temperature"] else {"type": "stop", "matched": 1}
    return 200, {"text": "", "output_ids": ids, "meta_info": {"finish_reason": finish}}


@pytest.mark.parametrize(("form", "kind"), [(llama_cpp, "llama.cpp"), (sglang, "SGLang 0.5.6")])
def test_ids_of_other_engines_are_kept(run, world, tmp_path, form, kind):
    with serving(form) as server:
        rows = generated(run, world, tmp_path, "--server", server.url, "--model.sweep.top_p", 0.5)
        asked = [body for _, body in server.seen if body]
    for row in rows:
        assert row["response_ids"] == [2 + (sum(row["prompt_ids"]) + place) % 14 for place in range(6)]
        assert row["response"] == "".join(f" w{token - 2}" for token in row["response_ids"]).strip()
        assert row["finish"] == ("length" if row["generation_temperature"] else "stop")
    options = [body.get("sampling_params", body) for body in asked]
    assert {(one["top_p"], one["ignore_eos"]) for one in options} == {(0.5, False)}
    if form is llama_cpp:
        assert {tuple(body["samplers"]) for body in asked} == {("temperature", "top_k", "top_p", "min_p")}
    assert json.loads((tmp_path / "generate/provenance.json").read_text())["server"]["kind"] == kind


def test_an_answer_without_a_text_is_one_line(run, world, tmp_path):
    def silent(path, body):
        return llama_cpp(path, body) if path != "/completion" else (200, {"stop": True})

    with serving(silent) as server:
        line = ("generate", "--config", world / "pair.yaml", "--run", tmp_path, *OPTIONS, "--server", server.url)
        code, _, error = run(*line)
    assert (code, error.splitlines()[-1].startswith(f"error: {server.url}: expected a completion with its text")) == (
        2,
        True,
    )
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("status", [429, 503])
def test_failures_that_may_pass_are_tried_again(run, world, engine, tmp_path, status):
    options = ("--server", f"{{url: '{engine.url}', concurrency: 1}}")  # else two requests may share out the luck
    whole = generated(run, world, tmp_path / "whole", *options)
    engine.fate = lambda count: status if count % 3 else 200
    assert generated(run, world, tmp_path / "again", *options) == whole


def test_a_server_that_goes_away_loses_nothing(run, world, engine, tmp_path):
    engine.fate = lambda count: 200 if count <= 4 else 503
    options = ("--server", f"{{url: '{engine.url}', retries: 1, concurrency: 1}}")
    command = ("generate", "--config", world / "pair.yaml", "--run", tmp_path / "run", *OPTIONS, *options)
    code, _, error = run(*command)
    assert code == 2
    assert "failed 2 times, last with: HTTP 503" in error
    assert error.count("\n") == 1
    engine.fate, asked = (lambda _: 200), len(engine.seen)
    rows = generated(run, world, tmp_path / "run", *options)
    assert len(rows) == 6
    assert len(engine.seen) - asked == 6 - 3 + 1  # one of the four answers was the first question of the form


SHOWN = ("--trainer.enable_progress_bar", "true")


def test_progress_of_a_server_is_shown_by_rows_and_tokens(run, world, engine, tmp_path, monkeypatch):
    monkeypatch.setattr("tempspec.cli.progress.FIRST_LINE", 0)
    monkeypatch.setattr("tempspec.cli.progress.LINE_EVERY", 0)
    command = ("generate", "--config", world / "pair.yaml", "--run", tmp_path / "run", *OPTIONS, "--server", engine.url)
    code, _, error = run(*command, *SHOWN)
    assert code == 0, error
    assert re.fullmatch(r"generate: 6 of 6 rows, tokens/s \d+, left 0:00", error.splitlines()[-1])
    assert "generate: " not in run(*command)[2]
    code, _, error = run(*command, *SHOWN)  # nothing is left
    assert (code, "generate: " in error) == (0, False)


def test_progress_of_a_server_is_a_bar_on_a_terminal(run, world, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(rich, "_console", None)
    command = ("generate", "--config", world / "pair.yaml", "--run", tmp_path / "run", *OPTIONS, "--server", engine.url)
    code, out, error = run(*command, *SHOWN)
    assert code == 0, error
    assert re.search(r"generate  tokens/s \d+  left 0:00.*6/6", out)


def test_what_is_asked_again_is_shown_while_nothing_comes(run, world, engine, tmp_path, monkeypatch):
    seen, show, sleep = threading.Event(), PaceLines.show, time.sleep

    def shown(lines, pace):
        show(lines, pace)
        if pace.trouble:
            seen.set()

    monkeypatch.setattr(PaceLines, "show", shown)
    monkeypatch.setattr("tempspec.cli.progress.FIRST_LINE", 0)
    monkeypatch.setattr("tempspec.modules.openai_client.time.sleep", lambda _: sleep(0.01))
    engine.fate = lambda _: 200 if seen.is_set() else 503
    server = ("--server", f"{{url: '{engine.url}', retries: 100000, concurrency: 1}}")
    command = ("generate", "--config", world / "pair.yaml", "--run", tmp_path / "run", *OPTIONS, *server, *SHOWN)
    code, _, error = run(*command)
    assert code == 0, error
    expected = f"0 of 6 rows, tokens/s 0; 1 request is sent again, last after {engine.url}: HTTP 503"
    assert expected in error


def test_a_conversation_is_asked_turn_by_turn(run, world, engine, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"category": "writing", "turns": ["w1 w2", "w3"]}')
    rows = generated(run, world, tmp_path / "run", "--server", engine.url, "--data.prompts", "{mt: {path: q.jsonl}}")
    assert [(row["category"], row["turn"]) for row in rows] == [("writing", 1), ("writing", 2)] * 2
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        opening, answer = first["prompt_ids"], first["response_ids"]
        assert second["prompt_ids"][: len(opening) + len(answer)] == opening + answer


def test_the_key_comes_from_the_environment_and_goes_nowhere(run, world, engine, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    generated(run, world, tmp_path / "run", "--server", engine.url)
    assert {key for key, _ in engine.seen} == {"Bearer sk-secret"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"sk-secret" in path.read_bytes()]


def test_a_refused_option_is_named_and_nothing_is_written(run, world, engine, tmp_path):
    engine.speculates = True
    options = (*OPTIONS, "--server", engine.url, "--model.sweep.min_p", 0.2)
    code, _, error = run("generate", "--config", world / "pair.yaml", "--run", tmp_path / "run", *options)
    assert code == 2
    assert "refuses model.sweep.min_p (got min_p 0.2): 400" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run/generate/generated.parquet").exists()
    assert [body["max_tokens"] for _, body in engine.seen] == [1]


@pytest.mark.parametrize(
    ("server", "status", "says"),
    [
        ("URL", 401, "refuses: 401"),
        ("URL", 302, "refuses: 302"),
        ("URL", 400, "refuses: 400"),
        ("ftp://host", 200, "server.url must be an address such as http://localhost:8000, got 'ftp://host'"),
        ("http://user:sk-1@host", 200, "server.url must hold no key"),
        ("{url: 'http://host', concurrency: 0}", 200, "server.concurrency must be more than 0"),
        ("{url: 'http://127.0.0.1:9', retries: 0, model: m}", 200, "failed 1 times"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line(server, status, says, run, world, engine, tmp_path):
    engine.fate = lambda _: status
    address = server.replace("URL", engine.url)
    code, _, error = run("generate", "--config", world / "pair.yaml", *OPTIONS, "--server", address)
    assert code == 2
    assert says in error
    assert "sk-1" not in error
    assert error.count("\n") == 1
