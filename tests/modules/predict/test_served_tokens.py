"""What is called impossible is impossible, and what no truncation leaves is found."""

import pytest
import torch

from tempspec.core.acceptance import Truncation
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.modules.engine_forms import LlamaCpp, Vllm
from tempspec.modules.openai_client import Refused
from tempspec.modules.predict.served_tokens import LISTED, SLACK, check_truncation, excluded_by

CUTS = [Truncation(top_k=5), Truncation(top_p=0.6), Truncation(min_p=0.1), Truncation(4, 0.8, 0.05)]


def told(logp_V, token):
    """What an engine tells of a law: its most likely tokens and this one."""
    listed = [*logp_V.topk(min(LISTED, len(logp_V))).indices.tolist(), token]
    return {one: float(logp_V[one]) for one in listed}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_what_our_law_keeps_is_never_called_impossible(cut, temperature):
    logits_NV = torch.randn(20, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    kept_NV = cut.laws(logits_NV, [temperature])[0] > 0
    for logp_V, kept_V in zip(logits_NV.log_softmax(-1), kept_NV, strict=True):
        for token in kept_V.nonzero().flatten().tolist():
            assert excluded_by(told(logp_V, token), token, temperature, cut) == []


@pytest.mark.parametrize("cut", CUTS[:3], ids=str)
def test_what_lies_well_outside_is_found(cut):
    logp_V = (torch.arange(60, dtype=torch.float64) * -2 * SLACK).log_softmax(-1)
    assert excluded_by(told(logp_V, 40), 40, 1.0, cut) == [
        name for name in ("top_k", "top_p", "min_p") if getattr(cut, name) != getattr(Truncation(), name)
    ]


class Engine:
    """Likes token t + 1 most; draws the best token, or any, whatever it is asked for."""

    def __init__(self, tells=True, obeys=True):
        self.tells, self.obeys, self.asked = tells, obeys, 0

    def __call__(self, body):
        self.asked += 1
        if "prompt_logprobs" not in body:
            step = 1 if self.obeys else 7
            return {"choices": [{"token_ids": [body["prompt"][-1] + step * n for n in range(1, 1 + 4)]}]}
        if not self.tells:
            raise Refused(400, "no prompt_logprobs")
        pairs = zip(body["prompt"], body["prompt"][1:], strict=False)
        entries = [{str(t): {"logprob": -3.0 * abs(t - s - 1)} for t in (s + 1, s + 2, new)} for s, new in pairs]
        return {"choices": [{"prompt_logprobs": [None, *entries]}]}


def due(temperature=1.0, **cut):
    request = Request((3, 4), temperature, max_new_tokens=8, **cut)
    return [({"model": "m", "prompt": [3, 4], "max_tokens": 8}, request)] * 9


def test_an_ignored_option_is_named():
    check_truncation("URL", Vllm(), Engine(), due(min_p=0.2))
    with pytest.raises(UserError, match=r"URL ignores model.sweep.min_p: 16 of 16 tokens .* under min_p 0.2; leave"):
        check_truncation("URL", Vllm(), Engine(obeys=False), due(min_p=0.2))


def test_where_nothing_is_told_a_line_says_so(caplog, monkeypatch):
    said = []
    monkeypatch.setattr("tempspec.modules.predict.served_tokens.rank_zero_info", said.append)
    check_truncation("URL", Vllm(), Engine(tells=False, obeys=False), due(top_k=2))
    assert said == ["URL returns no log-probabilities of what it has written: its tokens are not checked"]


@pytest.mark.parametrize("nothing", [due(), due(0.0, top_k=1)])
def test_what_cannot_go_wrong_asks_nothing(nothing):
    engine = Engine(obeys=False)
    check_truncation("URL", Vllm(), engine, nothing)
    assert engine.asked == 0


def entry(**tokens):
    return {name.lstrip("t"): {"logprob": value, "rank": rank} for rank, (name, value) in enumerate(tokens.items(), 1)}


RECORDED = [
    None,
    entry(t1095=-0.1357467770576477, t658=-2.256681203842163),
    entry(t266=-0.019881494343280792, t487=-5.1453471183776855),
    entry(t543=-0.0009110590908676386, t658=-8.75735855102539),
]
"""What vLLM 0.32 told of the prompt 1057 1095 266 543 with `prompt_logprobs: 2`."""


@pytest.mark.parametrize(("written", "wrong"), [((1095, 266, 543), 0), ((1095, 266, 658), 1)])
def test_what_vllm_tells_of_a_prompt_is_read(written, wrong):
    def post(body):
        told = {"prompt_logprobs": RECORDED} if "prompt_logprobs" in body else {"token_ids": list(written)}
        return {"choices": [told]}

    due = [({"model": "m", "prompt": [1057], "max_tokens": 3}, Request((1057,), 1.0, top_k=1, max_new_tokens=3))]
    if not wrong:
        assert check_truncation("URL", Vllm(), post, due) is None
        return
    with pytest.raises(UserError, match=r"URL ignores model.sweep.top_k: 1 of 3 tokens"):
        check_truncation("URL", Vllm(), post, due)


class Telling:
    """llama.cpp, which tells the law of each token before temperature and truncation; a real one wrote this place."""

    PLACE = {
        "id": 282,
        "token": " of",
        "bytes": [32, 111, 102],
        "logprob": -0.9022681713104248,
        "top_logprobs": [
            {"id": 282, "token": " of", "bytes": [32, 111, 102], "logprob": -0.9022681713104248},
            {"id": 79, "token": "_", "bytes": [95], "logprob": -2.604639768600464},
            {"id": 446, "token": " (", "bytes": [32, 40], "logprob": -3.2484824657440186},
        ],
    }

    def __init__(self, token=282, logprob=-0.9022681713104248, refuses=False, former=False):
        self.place, self.refuses = self.PLACE | {"id": token, "logprob": logprob}, refuses
        self.place = {"content": " of", "probs": [{"tok_str": " of", "prob": 0.4}]} if former else self.place

    def __call__(self, body):
        assert (body["n_predict"], body["n_probs"], body["post_sampling_probs"]) == (8, LISTED, False)
        if self.refuses:
            raise Refused(400, "no n_probs")
        return {"content": " of", "completion_probabilities": [self.place]}


def due_of_llama(**cut):
    request = Request((3, 4), 1.0, max_new_tokens=8, **cut)
    return [(LlamaCpp().body(request, "m", stops=True), request)] * 4


def test_what_llama_cpp_tells_of_its_own_tokens_is_looked_at():
    check_truncation("URL", LlamaCpp(), Telling(), due_of_llama(min_p=0.2))
    with pytest.raises(UserError, match=r"URL ignores model.sweep.min_p: 4 of 4 tokens"):
        check_truncation("URL", LlamaCpp(), Telling(7, -6.0), due_of_llama(min_p=0.2))


@pytest.mark.parametrize("option", ["refuses", "former"])
def test_a_llama_server_that_tells_nothing_is_not_checked(option, monkeypatch):
    said = []
    monkeypatch.setattr("tempspec.modules.predict.served_tokens.rank_zero_info", said.append)
    check_truncation("URL", LlamaCpp(), Telling(7, -6.0, **{option: True}), due_of_llama(min_p=0.2))
    assert said == ["URL returns no log-probabilities of what it has written: its tokens are not checked"]
