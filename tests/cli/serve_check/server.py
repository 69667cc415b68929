"""A server that speaks as vLLM does and decodes with our engine: what it counts is truly produced."""

import threading
from dataclasses import replace

import torch

from tempspec.decoding.engine import Engine
from tempspec.interfaces import Request
from tempspec.plugins.verifiers import TokenwiseRejection
from tests.serving import serving


class Speculating:
    """Answers completions with a pair of models.

    Args:
        target: the target.
        draft: the draft.
        parts: `drafter` and `length`.
        tokenizer: of both.
        records: whether answers carry their own counts; else counters do.
        options: of every request, such as a draft temperature.
    """

    def __init__(self, target, draft, parts, tokenizer, *, records=True, **options):
        self.engine = Engine(target, len(tokenizer), draft=draft, verifier=TokenwiseRejection(), slots=16, **parts)
        self.longest, self.tokenizer, self.records, self.options = parts["length"].longest, tokenizer, records, options
        self.lock, self.histogram, self.tokens, self.finished = threading.Lock(), [0] * (self.longest + 1), 0, 0
        self.done = {}

    def prepare(self, requests):
        """Decode these at once, which will be asked for: together is much faster than one by one."""
        ours = [self.own(one) for one in requests]
        with torch.inference_mode():
            self.done |= {self.name(done.request): done for done in self.engine.run(ours)}

    def own(self, request):
        """As this server decodes it, with noise of its own."""
        options = {"draft_temperature": request.target_temperature} | self.options if request.target_temperature else {}
        return replace(request, seed=(request.seed & 0x7FFFFFFF) + 1, **options)

    @staticmethod
    def name(request):
        return request.prompt, request.target_temperature, request.seed, request.max_new_tokens

    def __call__(self, path, body):
        pages = {"/version": {"version": "0.32.0"}, "/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}}
        if path in pages:
            return 200, pages[path]
        if path == "/metrics" and not self.records:
            return 200, self.metrics()
        if path == "/tokenize":
            return 200, {"tokens": self.tokenized(body)}
        return (200, self.completion(body)) if path == "/v1/completions" else (404, {"detail": "Not Found"})

    def tokenized(self, body):
        return self.tokenizer(body["prompt"])["input_ids"] if "prompt" in body else [1, 2, 3]

    def completion(self, body):
        sampling = {"top_k": max(body["top_k"], 0), "max_new_tokens": body["max_tokens"], "seed": body["seed"]}
        request = self.own(Request(tuple(body["prompt"]), body["temperature"], **sampling))
        with self.lock, torch.inference_mode():
            if (name := self.name(request)) not in self.done:
                (self.done[name],) = self.engine.run([request])
            done = self.done[name]
            drafting = [accepted for drafted, accepted in zip(done.drafted, done.accepted, strict=True) if drafted]
            histogram = [drafting.count(length) for length in range(self.longest + 1)]
            self.histogram = [one + more for one, more in zip(self.histogram, histogram, strict=True)]
            self.tokens, self.finished = self.tokens + len(done.tokens), self.finished + 1
        record = {
            "acceptance_histogram": histogram,
            "num_spec_steps": len(drafting),
            "num_accepted_draft_tokens": sum(drafting),
            "num_draft_tokens": sum(done.drafted),
        }
        usage = {"completion_tokens": len(done.tokens)}
        metrics = {"speculative_decoding": record} if self.records else None
        choices, rounds = [{"text": "", "token_ids": done.tokens}], len(done.drafted)
        return {"choices": choices, "usage": usage, "metrics": metrics, "rounds": rounds}

    def metrics(self):
        at_least = [sum(self.histogram[place:]) for place in range(1, self.longest + 1)]
        lines = {
            "spec_decode_num_drafts_total": sum(self.histogram),
            "spec_decode_num_draft_tokens_total": sum(self.histogram) * self.longest,
            "spec_decode_num_accepted_tokens_total": sum(at_least),
            "generation_tokens_total": self.tokens,
            'request_success_total{finished_reason="length"}': self.finished,
        }
        position = 'spec_decode_num_accepted_tokens_per_pos_total{{position="{}"}}'
        lines |= {position.format(place): count for place, count in enumerate(at_least)}
        return "".join(f"vllm:{name} {value}.0\n" for name, value in lines.items())


class LlamaCpp(Speculating):
    """The same engine, which speaks as llama-server does."""

    def __call__(self, path, body):
        pages = {"/v1/models": {"data": [{"id": "m.gguf", "owned_by": "llamacpp"}]}}
        if path == "/tokenize":
            return 200, {"tokens": self.tokenizer(body["content"])["input_ids"]}
        if path == "/apply-template":
            return 200, {"prompt": body["messages"][0]["content"]}
        if path == "/completion":
            return 200, self.answered(body)
        return (200, pages[path]) if path in pages else (404, {"error": {"message": "File Not Found"}})

    def answered(self, body):
        assert body["samplers"][0] == "temperature"
        asked = {"prompt": body["prompt"], "temperature": body["temperature"], "top_k": body["top_k"]}
        told = self.completion(asked | {"max_tokens": max(body["n_predict"] - 1, 1), "seed": body["seed"]})
        record, ids = told["metrics"]["speculative_decoding"], told["choices"][0]["token_ids"]
        timings = {"predicted_n": told["rounds"] + record["num_accepted_draft_tokens"] + 1}
        if record["num_draft_tokens"]:
            timings |= {"draft_n": record["num_draft_tokens"], "draft_n_accepted": record["num_accepted_draft_tokens"]}
        return {"content": "", "tokens": [*ids, 0], "timings": timings}


def llama_cpp(*args, **options):
    """A running server of that kind."""
    return serving(LlamaCpp(*args, **options))


def speculating(*args, **options):
    """A running server of that kind."""
    return serving(Speculating(*args, **options))
