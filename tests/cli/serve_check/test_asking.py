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


def test_llama_cpp_is_sent_to_import_results():
    with serving(pages(v1__models={"data": [{"id": "m", "owned_by": "llamacpp"}]})) as server:
        with pytest.raises(UserError, match="give them to `tempspec import-results`"):
            LiveEngine(Server(server.url))
