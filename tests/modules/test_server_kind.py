import pytest

from tempspec.errors import UserError
from tempspec.modules.openai_client import Refused, Server, call
from tempspec.modules.server_kind import Kind, recognise, refusal
from tests.serving import pages, serving

MODEL = {"id": "m", "object": "model"}
SAID = {
    "vllm": ({"version": {"version": "0.32.0"}}, Kind("vLLM 0.32.0", "engine")),
    "vllm behind a gateway": ({"v1__models": {"data": [MODEL | {"owned_by": "vllm"}]}}, Kind("vLLM", "engine")),
    "sglang": (
        {"get_server_info": {"model_path": "m", "version": "0.5.6"}, "v1__models": {"data": [MODEL]}},
        Kind("SGLang 0.5.6", "engine"),
    ),
    "llama.cpp": ({"v1__models": {"data": [MODEL | {"owned_by": "llamacpp"}]}}, Kind("llama.cpp", "engine")),
    "transformers": ({"openapi.json": {"paths": {"/load_model": {}}}}, Kind("transformers serve", "transformers")),
    "a page for all": ({"version": "<html>"}, Kind("unknown", "openai")),
    "nothing": ({}, Kind("unknown", "openai")),
}


@pytest.mark.parametrize("name", SAID)
def test_a_server_is_what_it_says_of_itself(name):
    said, kind = SAID[name]
    with serving(pages(**said)) as server:
        assert recognise(Server(server.url)) == kind


def test_a_form_that_is_named_asks_no_server():
    assert recognise(Server("http://127.0.0.1:9", form="engine")).form == "engine"


def test_a_server_that_is_not_there_is_no_unknown_one():
    with pytest.raises(UserError, match="failed 1 times"):
        recognise(Server("http://127.0.0.1:9", retries=0))


def refusing(*fields, words="bad request"):
    """A server that refuses a request in which one of these fields asks for something."""

    def answer(path, body):
        asked = [field for field in fields if {**body, **body.get("sampling_params", {})}.get(field)]
        return (400, {"error": words}) if asked else (200, {"choices": []})

    return serving(answer)


@pytest.mark.parametrize(
    ("fields", "words", "says"),
    [
        (["min_p"], "The min_p and logit_bias sampling parameters are not yet supported", "refuses model.sweep.min_p"),
        (["min_p"], "not with a draft", "refuses model.sweep.min_p (got min_p 0.2): 400"),
        (["min_p", "ignore_eos"], "no", "refuses model.sweep.min_p (got min_p 0.2) and model.sweep.stop_at_eos"),
        (["model"], "no such model", "refuses: 400: "),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_refused_option_is_named(fields, words, says, nested):
    options = {"min_p": 0.2, "top_p": 1.0, "ignore_eos": True}
    body = {"model": "m", **({"sampling_params": options} if nested else options)}  # as SGLang has them
    with refusing(*fields, words=words) as server:
        ours = Server(server.url)

        def ask(body):
            return call(ours, "completions", body)

        with pytest.raises(Refused) as caught:
            ask(body)
        message = str(refusal(ours, body, caught.value, ask))
    assert says in message
    assert "\n" not in message
