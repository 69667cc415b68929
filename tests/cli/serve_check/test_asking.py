import json

import pytest

from tempspec.cli.serve_check.asking import LiveEngine
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.modules.openai_client import Server
from tests.serving import pages, serving

META = {"completion_tokens": 9, "spec_verify_ct": 4, "spec_accept_histogram": [1, 1, 2]}
DUE = [(7, Request((1, 2), 0.5, max_new_tokens=9, key="a")), (8, Request((3,), 0.5, max_new_tokens=9, key="b"))]


def test_sglang_is_asked_in_its_own_form():
    def answer(path, body):
        if path == "/get_server_info":
            return 200, {"model_path": "m", "version": "0.5.6"}
        return (200, {"output_ids": [5, 6], "meta_info": META}) if path == "/generate" else (404, {})

    with serving(answer) as server:
        found = LiveEngine(Server(server.url)).answer(DUE)
        asked = [body for path, body in server.seen if path == "/generate"]
    assert asked[-1]["sampling_params"]["temperature"] == 0.5
    assert sorted(body["input_ids"] for body in asked) == [[1, 2], [1, 2], [3]]
    assert found.ids == {"a": [5, 6], "b": [5, 6]}
    assert [(one.prompt_key, one.drafting, one.accepted) for one in found.counted(3)] == [
        (7, 4, (3, 2, 0)),
        (8, 4, (3, 2, 0)),
    ]
    assert (found.drafted, found.tokens, found.own) == (2, 18, (18, 8))


def test_counters_that_others_move_are_refused(monkeypatch):
    """Each page of counters is of one more token than was asked for here."""
    pages = iter(range(1000))

    def answer(path, body):
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/metrics":
            return 200, f"vllm:spec_decode_num_drafts_total {next(pages)}.0\nvllm:generation_tokens_total 5.0\n"
        return 200, {"choices": [{"token_ids": [1]}], "usage": {"completion_tokens": 1}}

    monkeypatch.setattr("tempspec.cli.serve_check.asking.SETTLING", 3)
    with serving(answer) as server, pytest.raises(UserError, match="is used by others"):
        LiveEngine(Server(server.url)).answer(DUE)


def test_a_refused_option_of_the_sweep_is_named():
    def answer(path, body):
        if path == "/version":
            return 200, {"version": "0.32.0"}
        return 400, {"error": json.dumps("min_p is not yet supported with speculative decoding")}

    due = [(7, Request((1,), 1.0, min_p=0.2))]
    with serving(answer) as server, pytest.raises(UserError, match=r"refuses model.sweep.min_p \(got min_p 0.2\)"):
        LiveEngine(Server(server.url)).answer(due)


def test_llama_cpp_is_asked_in_its_own_form():
    """An answer by the layout of its documentation: `timings` has no counts where nothing was drafted."""

    def answer(path, body):
        if path == "/v1/models":
            return 200, {"data": [{"id": "m.gguf", "owned_by": "llamacpp"}]}
        timings = {"prompt_n": 2, "predicted_n": 10, "predicted_ms": 20.5}
        timings |= {"draft_n": 16, "draft_n_accepted": 5} if body and body["prompt"] == [1, 2] else {}
        return (200, {"content": "x", "tokens": [5, 6], "timings": timings}) if path == "/completion" else (404, {})

    with serving(answer) as server:
        found = LiveEngine(Server(server.url)).answer(DUE)
        asked = [body for path, body in server.seen if path == "/completion"]
    assert [(one.prompt_key, one.rounds, one.drafted, one.accepted) for one in found.totals()] == [
        (7, 4, 16, 5),
        (8, 9, 0, 0),
    ]
    assert (found.drafted, found.tokens, found.ids) == (0, 20, {"a": [5, 6], "b": [5, 6]})
    assert [body["n_predict"] for body in asked] == [1, 10, 10]  # one more than 9: its first comes before any round
    assert asked[1]["samplers"] == ["temperature", "top_k", "top_p", "min_p"]
    assert (asked[1]["temperature"], asked[1]["top_k"], asked[1]["min_p"]) == (0.5, -1, 0.0)


def test_llama_cpp_renders_messages_before_it_tells_their_tokens():
    said = {"v1__models": {"data": [{"owned_by": "llamacpp"}]}, "apply-template": {"prompt": "<user>hello"}}
    with serving(pages(**said, tokenize={"tokens": [3, 4]})) as server:
        engine = LiveEngine(Server(server.url))
        assert engine.tokens_of({"messages": [{"role": "user", "content": "hello"}]}) == [3, 4]
        assert engine.tokens_of({"prompt": "hello"}) == [3, 4]
        asked = [body for path, body in server.seen if path == "/tokenize"]
    assert asked == [{"content": "<user>hello", "add_special": False}, {"content": "hello", "add_special": True}]
