"""How each kind of engine is asked for a completion, and what its answer says (floor 6)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from tempspec.cli.import_results.counts import LoggedCounts
from tempspec.cli.import_results.responses import of_responses
from tempspec.interfaces import Request
from tempspec.modules.openai_client import Refused, Server, call

__all__ = ["Dialect", "dialect_of"]

Answer = Mapping[str, Any]


class Dialect(ABC):
    """One kind of engine.

    Attributes:
        path: where completions are asked for.
        positions: whether it can tell in how many rounds each position was accepted.
        extra: tokens to ask for beyond a request's, so that as many as in our rows come from rounds. Without positions
            the last round counts, which drafts less, and the first token comes before any round.
    """

    path: ClassVar[str]
    positions: ClassVar[bool] = True
    extra: ClassVar[int] = 0

    @abstractmethod
    def body(self, request: Request, model: str) -> dict[str, Any]:
        """What is sent for a request to a model of that name."""

    @abstractmethod
    def ids(self, answer: Answer) -> list[int]:
        """The tokens of an answer; none where it returns text alone."""

    @abstractmethod
    def written(self, answer: Answer) -> int:
        """How many tokens it has written."""

    def tells(self, answer: Answer) -> bool:
        """Whether answers carry their own counts."""
        return True

    def counts(self, url: str, answer: Answer) -> list[LoggedCounts]:
        """What was counted of an answer; nothing where no round was verified.

        Raises:
            UserError: it carries no counts, or broken ones.
        """
        log = of_responses(url, [answer])
        return log.counts if log else []

    def tokenized(self, server: Server, model: str, body: Mapping[str, Any]) -> list[int] | None:
        """What the server's tokenizer makes of a `prompt`, or of `messages`; None where it does not tell.

        Raises:
            UserError: the server cannot be reached.
        """
        return _tokens(server, {"model": model, **body})


class Vllm(Dialect):
    """vLLM: completions of OpenAI, with its own fields."""

    path = "completions"

    def body(self, request: Request, model: str) -> dict[str, Any]:
        """See `Dialect.body`."""
        own = {"model": model, "prompt": list(request.prompt), "max_tokens": request.max_new_tokens}
        return own | _sampling(request) | {"seed": _seed(request), "return_token_ids": True}

    def ids(self, answer: Answer) -> list[int]:
        """See `Dialect.ids`."""
        return answer["choices"][0].get("token_ids") or []

    def written(self, answer: Answer) -> int:
        """See `Dialect.written`."""
        return int((answer.get("usage") or {}).get("completion_tokens") or 0)

    def tells(self, answer: Answer) -> bool:
        """See `Dialect.tells`."""
        return bool((answer.get("metrics") or {}).get("speculative_decoding"))


class Sglang(Dialect):
    """SGLang: its own `/generate`."""

    path = "/generate"

    def body(self, request: Request, model: str) -> dict[str, Any]:
        """See `Dialect.body`."""
        params = _sampling(request) | {"max_new_tokens": request.max_new_tokens}
        return {"input_ids": list(request.prompt), "sampling_params": params}

    def ids(self, answer: Answer) -> list[int]:
        """See `Dialect.ids`."""
        return answer.get("output_ids") or []

    def written(self, answer: Answer) -> int:
        """See `Dialect.written`."""
        return int((answer.get("meta_info") or {}).get("completion_tokens") or 0)


class LlamaCpp(Dialect):
    """llama.cpp: its own `/completion`, which counts drafted and accepted tokens, and no positions."""

    path = "/completion"
    positions = False
    extra = 1

    def body(self, request: Request, model: str) -> dict[str, Any]:
        """See `Dialect.body`; its own order of samplers would truncate before the temperature."""
        own = {"prompt": list(request.prompt), "n_predict": request.max_new_tokens, "return_tokens": True}
        order = {"samplers": ["temperature", "top_k", "top_p", "min_p"], "repeat_penalty": 1.0}
        return own | _sampling(request) | order | {"seed": _seed(request)}

    def ids(self, answer: Answer) -> list[int]:
        """See `Dialect.ids`."""
        return answer.get("tokens") or []

    def written(self, answer: Answer) -> int:
        """See `Dialect.written`."""
        return int((answer.get("timings") or {}).get("predicted_n") or 0)

    def counts(self, url: str, answer: Answer) -> list[LoggedCounts]:
        """See `Dialect.counts`; where nothing was drafted it leaves the counts out."""
        return super().counts(url, {"draft_n": 0, "draft_n_accepted": 0, **(answer.get("timings") or {})})

    def tokenized(self, server: Server, model: str, body: Mapping[str, Any]) -> list[int] | None:
        """See `Dialect.tokenized`; messages are rendered first, and its template writes the special tokens."""
        if "messages" not in body:
            return _tokens(server, {"content": body["prompt"], "add_special": True})
        text = _page(server, "/apply-template", body).get("prompt")
        return _tokens(server, {"content": text, "add_special": False}) if isinstance(text, str) else None


def dialect_of(name: str) -> Dialect:
    """That of an engine, by what `recognise` calls it.

    >>> type(dialect_of("SGLang 0.5.6")).__name__, type(dialect_of("as server.form says")).__name__
    ('Sglang', 'Vllm')
    """
    known: dict[str, type[Dialect]] = {"SGLang": Sglang, "llama.cpp": LlamaCpp}
    return known.get(name.partition(" ")[0], Vllm)()


def _sampling(request: Request) -> dict[str, Any]:
    return {
        "temperature": request.target_temperature,
        "top_p": request.top_p,
        "top_k": request.top_k or -1,
        "min_p": request.min_p,
        "repetition_penalty": 1.0,
        "ignore_eos": not request.stop_ids,
    }


def _seed(request: Request) -> int:
    return request.seed & 0x7FFFFFFF


def _page(server: Server, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return call(server, path, body)
    except Refused:
        return {}


def _tokens(server: Server, body: Mapping[str, Any]) -> list[int] | None:
    told = _page(server, "/tokenize", body).get("tokens")
    return [int(token) for token in told] if isinstance(told, list) else None
