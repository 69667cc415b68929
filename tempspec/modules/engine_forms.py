"""How each kind of engine is asked for a completion, and where its answer has the tokens (floor 5)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.modules.openai_client import Refused

__all__ = ["Answer", "EngineForm", "LlamaCpp", "Post", "Sglang", "Vllm", "form_of"]

Answer = Mapping[str, Any]

Post = Callable[[Mapping[str, Any]], Answer]
"""Asks for a completion."""

Law = dict[int, float]
"""Log-probabilities in nats at temperature 1 by token, of the most likely tokens and of the one that was sampled."""


class EngineForm(ABC):
    """One kind of engine, which takes token ids and all sampling options by name.

    Attributes:
        path: where completions are asked for.
    """

    path: ClassVar[str]

    @abstractmethod
    def body(self, request: Request, model: str, *, stops: bool) -> dict[str, Any]:
        """What is sent for a request.

        Args:
            request: prompt and sampling options.
            model: the name that the target is served under.
            stops: whether a text ends at its end token.
        """

    @abstractmethod
    def ids(self, answer: Answer) -> list[int]:
        """The tokens of an answer; none where it returns text only."""

    @abstractmethod
    def text(self, answer: Answer) -> str:
        """The text of an answer.

        Raises:
            KeyError: it has none; so may be an IndexError, a TypeError or an AttributeError.
        """

    @abstractmethod
    def ended(self, answer: Answer) -> bool:
        """Whether a text came to its end by itself."""

    def sampled(self, post: Post, body: Mapping[str, Any], tokens: int, listed: int) -> list[tuple[Law, int]]:
        """The law and the token at each place of a short completion; nothing where the engine does not tell.

        Args:
            post: asks.
            body: for a completion.
            tokens: of the completion, at most.
            listed: tokens to be told at each place.
        """
        return []


class Vllm(EngineForm):
    """vLLM: completions of OpenAI, with its own fields."""

    path = "completions"

    def body(self, request: Request, model: str, *, stops: bool) -> dict[str, Any]:
        """See `EngineForm.body`."""
        own = {"model": model, "prompt": list(request.prompt), "max_tokens": request.max_new_tokens}
        return own | _sampling(request, stops=stops) | {"seed": _seed(request), "return_token_ids": True}

    def ids(self, answer: Answer) -> list[int]:
        """See `EngineForm.ids`."""
        return answer["choices"][0].get("token_ids") or []

    def text(self, answer: Answer) -> str:
        """See `EngineForm.text`."""
        return str(answer["choices"][0]["text"])

    def ended(self, answer: Answer) -> bool:
        """See `EngineForm.ended`."""
        return bool(answer["choices"][0].get("finish_reason") != "length")

    def sampled(self, post: Post, body: Mapping[str, Any], tokens: int, listed: int) -> list[tuple[Law, int]]:
        """See `EngineForm.sampled`: by the log-probabilities of the whole text as a prompt."""
        try:
            ids = _choice(post({**body, "max_tokens": min(tokens, body["max_tokens"])})).get("token_ids") or []
            whole = {"model": body["model"], "prompt": [*body["prompt"], *ids], "max_tokens": 1, "temperature": 0.0}
            told = _choice(post({**whole, "prompt_logprobs": listed})).get("prompt_logprobs") or []
        except Refused:
            return []
        laws = [{int(token): float(entry["logprob"]) for token, entry in (law or {}).items()} for law in told]
        places = zip(laws[len(body["prompt"]) :], ids, strict=False)
        return [(law, token) for law, token in places if token in law]


class Sglang(EngineForm):
    """SGLang: its own `/generate`."""

    path = "/generate"

    def body(self, request: Request, model: str, *, stops: bool) -> dict[str, Any]:
        """See `EngineForm.body`."""
        params = _sampling(request, stops=stops) | {"max_new_tokens": request.max_new_tokens}
        return {"input_ids": list(request.prompt), "sampling_params": params}

    def ids(self, answer: Answer) -> list[int]:
        """See `EngineForm.ids`."""
        return answer.get("output_ids") or []

    def text(self, answer: Answer) -> str:
        """See `EngineForm.text`."""
        return str(answer["text"])

    def ended(self, answer: Answer) -> bool:
        """See `EngineForm.ended`."""
        return bool((answer["meta_info"].get("finish_reason") or {}).get("type") != "length")


class LlamaCpp(EngineForm):
    """llama.cpp: its own `/completion`; its own order of samplers would truncate before the temperature."""

    path = "/completion"

    def body(self, request: Request, model: str, *, stops: bool) -> dict[str, Any]:
        """See `EngineForm.body`.

        Raises:
            UserError: a text is not to end at its end token, which llama.cpp then takes out of the distribution.
        """
        if not stops:
            raise UserError(
                "llama.cpp cannot write past an end token: told to ignore it, it gives it no probability; "
                "set model.sweep.stop_at_eos: true"
            )
        own = {"prompt": list(request.prompt), "n_predict": request.max_new_tokens, "return_tokens": True}
        order = {"samplers": ["temperature", "top_k", "top_p", "min_p"], "repeat_penalty": 1.0}
        return own | _sampling(request, stops=stops) | order | {"seed": _seed(request)}

    def ids(self, answer: Answer) -> list[int]:
        """See `EngineForm.ids`."""
        return answer.get("tokens") or []

    def text(self, answer: Answer) -> str:
        """See `EngineForm.text`."""
        return str(answer["content"])

    def ended(self, answer: Answer) -> bool:
        """See `EngineForm.ended`."""
        return bool(answer.get("stop_type") != "limit")

    def sampled(self, post: Post, body: Mapping[str, Any], tokens: int, listed: int) -> list[tuple[Law, int]]:
        """See `EngineForm.sampled`: by what it tells of each token before temperature and truncation."""
        short = {"n_predict": min(tokens, body["n_predict"]), "n_probs": listed, "post_sampling_probs": False}
        try:
            told = post({**body, **short}).get("completion_probabilities") or []
        except Refused:
            return []
        return [
            ({int(one["id"]): float(one["logprob"]) for one in [*place["top_logprobs"], place]}, int(place["id"]))
            for place in told
            if "top_logprobs" in place  # earlier versions tell probabilities of texts
        ]


def _choice(answer: Answer) -> Mapping[str, Any]:
    choices = answer.get("choices") or [{}]
    return choices[0]


def form_of(name: str) -> EngineForm:
    """That of an engine, by what `recognise` calls it.

    >>> type(form_of("SGLang 0.5.6")).__name__, type(form_of("as server.form says")).__name__
    ('Sglang', 'Vllm')
    """
    known: dict[str, type[EngineForm]] = {"SGLang": Sglang, "llama.cpp": LlamaCpp}
    return known.get(name.partition(" ")[0], Vllm)()


def _sampling(request: Request, *, stops: bool) -> dict[str, Any]:
    return {
        "temperature": request.target_temperature,
        "top_p": request.top_p,
        "top_k": request.top_k or -1,
        "min_p": request.min_p,
        "repetition_penalty": 1.0,
        "ignore_eos": not stops,
    }


def _seed(request: Request) -> int:
    return request.seed & 0x7FFFFFFF
