"""What each kind of engine tells of an answer besides its tokens: counts, and its tokenizer's work (floor 6)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from tempspec.cli.import_results.counts import LoggedCounts
from tempspec.cli.import_results.responses import of_responses
from tempspec.modules import engine_forms
from tempspec.modules.engine_forms import Answer, EngineForm, form_of
from tempspec.modules.openai_client import Refused, Server, call

__all__ = ["Dialect", "dialect_of"]


class Dialect(ABC):
    """One kind of engine.

    Args:
        form: how it is asked.

    Attributes:
        positions: whether it can tell in how many rounds each position was accepted.
        only: where it drafts in one way whatever it is told, that hypothesis of `verdicts.HYPOTHESES` and a remark.
        extra: tokens to ask for beyond a request's, so that as many as in our rows come from rounds. Without positions
            the last round counts, which drafts less, and the first token comes before any round.
    """

    positions: ClassVar[bool] = True
    only: ClassVar[tuple[str, str] | None] = None
    extra: ClassVar[int] = 0

    def __init__(self, form: EngineForm) -> None:
        self.form = form

    @abstractmethod
    def written(self, answer: Answer) -> int:
        """How many tokens an answer has written."""

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
    """vLLM: a record in each answer where it was told to, and usage."""

    def written(self, answer: Answer) -> int:
        """See `Dialect.written`."""
        return int((answer.get("usage") or {}).get("completion_tokens") or 0)

    def tells(self, answer: Answer) -> bool:
        """See `Dialect.tells`."""
        return bool((answer.get("metrics") or {}).get("speculative_decoding"))


class Sglang(Dialect):
    """SGLang: its meta_info."""

    def written(self, answer: Answer) -> int:
        """See `Dialect.written`."""
        return int((answer.get("meta_info") or {}).get("completion_tokens") or 0)


class LlamaCpp(Dialect):
    """llama.cpp: timings, which have drafted and accepted tokens, and no positions."""

    positions = False
    only = "argmax", "llama.cpp always does so, and model.sweep.draft_temperatures: 0.0 measures it"
    extra = 1

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
    form = form_of(name)
    known: dict[type[EngineForm], type[Dialect]] = {engine_forms.Sglang: Sglang, engine_forms.LlamaCpp: LlamaCpp}
    return known.get(type(form), Vllm)(form)


def _page(server: Server, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return call(server, path, body)
    except Refused:
        return {}


def _tokens(server: Server, body: Mapping[str, Any]) -> list[int] | None:
    told = _page(server, "/tokenize", body).get("tokens")
    return [int(token) for token in told] if isinstance(told, list) else None
