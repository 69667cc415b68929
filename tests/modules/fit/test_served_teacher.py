"""A teacher from a server that tells log-probabilities as vLLM does: of our own target, so that all is known."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tempspec.core.sparse import top_k
from tempspec.errors import UserError
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.served_teacher import kept_of
from tempspec.modules.fit.teacher_cache import CachedTeacher, TeacherCache
from tempspec.modules.openai_client import Server
from tests.serving import serving
from tests.tiny import llama

V = 24
RECORDED = Path(__file__).parent / "recorded"
"""Answers of vLLM 0.32.0 to `IDS` of `served_model`, with `prompt_logprobs` 4; and to more than it gives."""
IDS = [1, 5, 7, 2, 9, 11, 3, 20, 14, 6]


def served_model():
    heads = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}
    return llama(0, V, 2, gain=6.0, context=256, **heads)


class Telling:
    """Answers with log-probabilities of every prompt's tokens.

    Args:
        target: the model.
        of: from logits and the asked temperature to the values that are told.
        most: log-probabilities that may be asked for.
        answers: how many completions are answered before the server fails.
    """

    def __init__(self, target, of=lambda logits, _: logits.log_softmax(-1), most=V, answers=10**6):
        self.target, self.of, self.most, self.answers = target, of, most, answers

    def __call__(self, path, body):
        pages = {"/version": {"version": "0.32.0"}, "/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}}
        if path in pages:
            return 200, pages[path]
        self.answers -= 1
        if self.answers < 0:
            return 503, {"error": "gone"}
        if (asked := body["prompt_logprobs"]) > self.most:
            message = f"Requested prompt logprobs of {asked}, which is greater than max allowed: {self.most}"
            return 400, {"error": {"message": message}}
        return 200, {"choices": [{"text": "w1", "prompt_logprobs": self.told(body, asked)}]}

    @torch.inference_mode()
    def told(self, body, asked):
        logits_TV = self.target(torch.tensor([body["prompt"]])).logits[0, :-1, :V].double()
        found = [None]
        for value_V, own in zip(self.of(logits_TV, body["temperature"]), body["prompt"][1:], strict=True):
            order = value_V.argsort(descending=True).tolist()
            listed = [*order[:asked], *([own] if own not in order[:asked] else [])]
            found.append(
                {
                    str(t): {"logprob": float(value_V[t]), "rank": order.index(t) + 1, "decoded_token": ""}
                    for t in listed
                }
            )
        return found


class TellingAsSglang(Telling):
    """The same as SGLang's `/generate` tells it: of each token `[log-probability, id, text]`; null at the first."""

    def __call__(self, path, body):
        pages = {"/get_server_info": {"model_path": "m", "version": "0.5.6"}}
        if path != "/generate":
            return (200, pages[path]) if path in pages else (404, {})
        assert (body["return_logprob"], body["logprob_start_len"]) == (True, 0)
        kept, temperature = body["top_logprobs_num"], body["sampling_params"]["temperature"]
        laws = self.told({"prompt": body["input_ids"], "temperature": temperature}, kept)
        return 200, {
            "text": "w1",
            "meta_info": {"input_top_logprobs": [law and self.listed(law)[:kept] for law in laws]},
        }

    @staticmethod
    def listed(law):
        ranked = sorted((entry["rank"], int(token), entry["logprob"]) for token, entry in law.items())
        return [[value, token, None] for _, token, value in ranked]


@pytest.fixture(scope="module")
def target(pair):
    return AutoModelForCausalLM.from_pretrained(pair / "target").eval()


@pytest.fixture
def bare(pair, tmp_path):
    """The target without its weights."""
    return shutil.copytree(pair / "target", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))


def module(pair, target, folder, **options):
    options = {"tokens": 6, "temperatures": [0.5, 1.0, 2.0], "shard_rows": 16} | options
    return DistillationModule(
        target=str(target), draft=str(pair / "draft"), teacher=CachedTeacher(str(folder), **options)
    )


def write(answer, one, data, **options):
    with serving(answer) as server:
        server_ = Server(server.url, concurrency=3, retries=0, **options)
        one.draft_training.write_served_cache(data, server_)
        return server.seen


def read(one, data):
    """What fit reads of all rows."""
    from tempspec.modules.fit.teacher import cache_origin

    data.setup("fit")
    rows = torch.arange(len(data.train_rows))
    cache = TeacherCache(one.draft_training.teacher, cache_origin(one.pair, data))
    return cache(rows, torch.ones(len(rows)))


@torch.inference_mode()
def test_what_vllm_has_told_is_what_its_model_says_here():
    laws = json.loads((RECORDED / "prompt_logprobs.json").read_text())["choices"][0]["prompt_logprobs"]
    found = kept_of(laws[1:], 4, V, (0.5, 1.0, 2.0))
    logp_NV = served_model()(torch.tensor([IDS])).logits[0, :-1].log_softmax(-1)
    ours = top_k(logp_NV, 4, (0.5, 1.0, 2.0))
    assert torch.equal(found.token_NK, ours.token_NK)
    torch.testing.assert_close(found.logit_NK, ours.logit_NK, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.logsum_NH[:, 1], ours.logsum_NH[:, 1], atol=1e-4, rtol=0)
    assert (found.logsum_NH - ours.logsum_NH).abs().max() < 0.5  # an estimate at other temperatures


def test_logits_that_vllm_has_told_are_no_log_probabilities():
    """Of the same text, from a server with `--logprobs-mode raw_logits`."""
    laws = json.loads((RECORDED / "raw_logits.json").read_text())["choices"][0]["prompt_logprobs"]
    with pytest.raises(ValueError, match="add up to more than 1"):
        kept_of(laws[1:], 4, V, (1.0,))


def test_logits_far_below_0_are_no_log_probabilities():
    """GPT-2's are about -33: nothing adds up to more than 1, and the other tokens cannot have the rest of it."""
    law = {str(token): {"logprob": value, "rank": token + 1} for token, value in enumerate((-33.1, -33.5, -34.0))}
    with pytest.raises(ValueError, match="add up to less than 1"):
        kept_of([law], 3, 50_257, [1.0])
    flat = {str(token): {"logprob": -math.log(50_257), "rank": token + 1} for token in range(3)}
    kept_of([flat], 3, 50_257, [1.0])


def test_vllms_own_refusal_names_its_option(pair, bare, target, data, tmp_path):
    told = json.loads((RECORDED / "too_many.json").read_text())
    answer = Telling(target)

    def refusing(path, body):
        return (told["status"], told["body"]) if path == "/v1/completions" else answer(path, body)

    with pytest.raises(UserError, match=r"max allowed: 24 .*: start vLLM with --max-logprobs 6, or lower"):
        write(refusing, module(pair, bare, tmp_path / "t"), data)


@pytest.mark.parametrize("tokens", [V, 6])
def test_a_served_teacher_is_the_one_that_is_cached_here(pair, bare, target, data, tmp_path, tokens):
    here, there = (module(pair, name, tmp_path / name.name, tokens=tokens) for name in (pair / "target", bare))
    here.cache_target("teacher", data, torch.device("cpu"))
    write(Telling(target), there, data)
    ours, theirs = read(here, data), read(there, data)
    assert torch.equal(ours.token_NK, theirs.token_NK)
    for temperature in (1.0,) if tokens < V else (0.5, 1.0, 2.0):
        at_N = torch.full((len(ours.token_NK),), temperature)
        logq_NV = torch.zeros(len(at_N), V).log_softmax(-1)
        torch.testing.assert_close(theirs.laws(at_N, logq_NV), ours.laws(at_N, logq_NV), atol=1e-5, rtol=0)


@pytest.mark.parametrize("separate", [True, False])
def test_documents_of_packed_rows_are_read_as_fit_reads_them(pair, bare, target, data, tmp_path, separate):
    data.setup("fit")
    rows = data.train_rows
    rows = rows.remove_columns("starts") if "starts" in rows.column_names else rows
    data._train = rows.add_column("starts", [[0, 6, 9]] * len(rows))
    data.encoding.separate = separate
    here, there = (module(pair, name, tmp_path / name.name, tokens=V) for name in (pair / "target", bare))
    here.cache_target("teacher", data, torch.device("cpu"))
    write(Telling(target), there, data)
    ours, theirs = read(here, data), read(there, data)
    at_N, logq_NV = torch.ones(len(ours.token_NK)), torch.zeros(len(ours.token_NK), V).log_softmax(-1)
    assert torch.equal(ours.token_NK, theirs.token_NK)
    torch.testing.assert_close(theirs.laws(at_N, logq_NV), ours.laws(at_N, logq_NV), atol=1e-5, rtol=0)


def test_the_size_and_what_is_not_told_are_said_before(pair, bare, target, data, tmp_path, caplog):
    write(Telling(target), module(pair, bare, tmp_path / "t"), data)
    assert "cached teacher: 60 rows, 720 tokens, about" in caplog.text
    assert "leave a share to other tokens: at T = 0.5" in caplog.text


def test_fit_learns_without_the_targets_weights(pair, bare, target, data, trainer, tmp_path):
    write(Telling(target), module(pair, bare, tmp_path / "t"), data)
    one = module(pair, bare, tmp_path / "t")
    before = AutoModelForCausalLM.from_pretrained(pair / "draft").state_dict()
    trainer(max_steps=2).fit(one, data)
    assert any(not torch.equal(value, before[name]) for name, value in one.draft.state_dict().items())
    named = module(pair, pair / "target", tmp_path / "t")
    with pytest.raises(UserError, match="it was made of the target"):
        trainer(max_steps=1).fit(named, data)


def test_an_interrupted_cache_goes_on_where_it_stopped(pair, bare, target, data, tmp_path):
    one = module(pair, bare, tmp_path / "t")
    with pytest.raises(UserError, match="failed 1 times"):
        write(Telling(target, answers=45), one, data)
    assert len(list((tmp_path / "t").glob("*.arrow"))) == 2
    seen = write(Telling(target), one, data)
    assert sum(path == "/v1/completions" for path, _ in seen) == 28 + 2
    write(Telling(target), module(pair, bare, tmp_path / "whole"), data)
    for shard in (tmp_path / "whole").glob("*.arrow"):
        assert (tmp_path / "t" / shard.name).read_bytes() == shard.read_bytes()
    assert not [path for path, _ in write(Telling(target), one, data) if path == "/v1/completions"]


@pytest.mark.parametrize(
    ("answer", "options", "says"),
    [
        ({"of": lambda logits, _: logits}, {}, "values whose exponentials add up to more than 1"),
        ({"of": lambda logits, t: (logits / t).log_softmax(-1)}, {}, "depend on the temperature"),
        ({"most": 5}, {}, "start vLLM with --max-logprobs 6, or lower teacher.tokens"),
        ({}, {"keep": "sampled"}, "keeps top tokens, got teacher.keep: sampled"),
    ],
    ids=["logits", "processed", "few", "sampled"],
)
def test_what_a_server_cannot_give_is_refused(pair, bare, target, data, tmp_path, answer, options, says):
    with pytest.raises(UserError, match=says):
        write(Telling(target, **answer), module(pair, bare, tmp_path / "t", **options), data)
    assert not list((tmp_path / "t").glob("*.arrow"))


def test_sglang_teaches_what_vllm_does(pair, bare, target, data, tmp_path):
    """Of one model: each by its own form, to caches that are equal but for the engine's name."""
    for name, answer in (("vllm", Telling(target)), ("sglang", TellingAsSglang(target))):
        write(answer, module(pair, bare, tmp_path / name), data)
    shards = sorted(file.name for file in (tmp_path / "vllm").glob("*.arrow"))
    assert len(shards) > 1
    for name in shards:
        assert (tmp_path / "vllm" / name).read_bytes() == (tmp_path / "sglang" / name).read_bytes()
    assert json.loads((tmp_path / "sglang/teacher.json").read_text())["served"] == "SGLang 0.5.6"


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (lambda logits, t: (logits / t).log_softmax(-1), "depend on the temperature: SGLang tells its"),
        (lambda logits, _: logits, "add up to more than 1; SGLang tells its"),
    ],
    ids=["processed", "logits"],
)
def test_values_of_sglang_that_are_not_raw_are_refused(pair, bare, target, data, tmp_path, of, says):
    with pytest.raises(UserError, match=says):
        write(TellingAsSglang(target, of), module(pair, bare, tmp_path / "t"), data)


def test_an_sglang_that_leaves_tokens_out_is_refused(pair, bare, target, data, tmp_path):
    """As one would that tells only what it had not read before."""

    class Short(TellingAsSglang):
        def told(self, body, asked):
            return super().told(body, asked)[1:]

    with pytest.raises(UserError, match="gives no log-probabilities for each of"):
        write(Short(target), module(pair, bare, tmp_path / "t"), data)


def test_another_server_than_these_is_refused(pair, bare, data, tmp_path):
    with pytest.raises(UserError, match="is unknown: expected vLLM or SGLang"):
        write(lambda path, body: (404, {}), module(pair, bare, tmp_path / "t"), data)
