"""Log-probabilities of a given text's tokens, as each engine is asked for them and tells them (floor 5).

Both engines tell them raw: before any temperature or truncation. SGLang's form is that of its documentation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tempspec.errors import UserError
from tempspec.modules.openai_client import Server, Trouble, call

__all__ = ["ENGINES", "TellingEngine", "telling"]

Law = Mapping[str, Mapping[str, float]]
"""Of one token: `logprob` and `rank` by the token's id."""


@dataclass(frozen=True)
class TellingEngine:
    """How an engine is asked, and what to say where it does not answer as it must.

    Attributes:
        name: as `recognise` begins it.
        path: where.
        raw: how to make it tell raw log-probabilities.
        more: how to make it tell more of them, for so many.
        longer: how to make it read longer texts.
    """

    name: Literal["vLLM", "SGLang"]
    path: str
    raw: str
    more: str
    longer: str

    def laws(
        self, server: Server, model: str, ids: Sequence[int], kept: int, temperature: float, trouble: Trouble
    ) -> list[Law | None]:
        """The most likely tokens at each token of a text; None at the first.

        Args:
            server: whom to ask.
            model: the name that it serves the target under.
            ids: the text.
            kept: tokens to be told at each.
            temperature: of the one token that is written, which should change nothing.
            trouble: told of failures after which the request is sent again.

        Raises:
            Refused: it answers that it will not.
            UserError: it does not tell, or cannot be reached.
        """
        answer = call(server, self.path, self._body(model, list(ids), kept, temperature), trouble)
        found = self._found(answer)
        if not isinstance(found, list) or len(found) != len(ids):
            raise UserError(
                f"{server.url} gives no log-probabilities for each of {len(ids)} tokens: ask vLLM or SGLang"
            )
        return found

    def _body(self, model: str, ids: list[int], kept: int, temperature: float) -> dict[str, Any]:
        if self.name == "SGLang":
            params = {"max_new_tokens": 1, "temperature": temperature}
            asked = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": kept}
            return {"input_ids": ids, "sampling_params": params, **asked}
        own = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": temperature}
        return own | {"prompt_logprobs": kept}

    def _found(self, answer: Mapping[str, Any]) -> Any:
        if self.name == "SGLang":
            told = (answer.get("meta_info") or {}).get("input_top_logprobs")
            return [_ranked(entries) for entries in told] if isinstance(told, list) else None
        return (answer.get("choices") or [{}])[0].get("prompt_logprobs")


def _ranked(entries: Sequence[Sequence[Any]] | None) -> Law | None:
    """SGLang's `[log-probability, id, text]`, the most likely first, by id and rank.

    >>> _ranked([[-0.5, 7, None], [-1.5, 3, None]])
    {'7': {'logprob': -0.5, 'rank': 1}, '3': {'logprob': -1.5, 'rank': 2}}
    """
    if entries is None:
        return None
    return {str(entry[1]): {"logprob": entry[0], "rank": rank} for rank, entry in enumerate(entries, start=1)}


ENGINES = (
    TellingEngine(
        "vLLM",
        "completions",
        raw="start vLLM with --logprobs-mode raw_logprobs, its default",
        more="start vLLM with --max-logprobs {}, or lower teacher.tokens",
        longer="see server.model and --max-model-len",
    ),
    TellingEngine(
        "SGLang",
        "/generate",
        raw="SGLang tells its input_top_logprobs before any temperature; ask a version that does",
        more="lower teacher.tokens to fewer than {}",
        longer="see --context-length",
    ),
)
"""Engines that tell log-probabilities of a text that they are given."""


def telling(server: Server, kind: str) -> TellingEngine:
    """The engine of a kind.

    Args:
        server: which it is.
        kind: as `recognise` calls it.

    Raises:
        UserError: one that does not tell them.
    """
    found = next((engine for engine in ENGINES if kind.startswith(engine.name)), None)
    if found is None:
        raise UserError(
            f"{server.url} is {kind}: expected vLLM or SGLang, which tell log-probabilities of a text that is given"
        )
    return found
