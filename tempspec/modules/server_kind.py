"""What kind of server is asked, by what it says of itself, and which option a refusal is about (floor 5).

A refusal says nothing about the kind: an engine refuses an option that it cannot do, too, and another form of the same
request may be answered by ignoring that option.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tempspec.errors import UserError
from tempspec.modules.openai_client import Form, Refused, Server, Trouble, call

__all__ = ["Kind", "listed_models", "recognise", "refusal"]

OWNERS: dict[str, str] = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp"}
"""Engines by what they write as the owner of a model that they list."""

_OPTIONS: dict[str, tuple[str, Any]] = {
    "min_p": ("model.sweep.min_p", 0.0),
    "top_k": ("model.sweep.top_k", -1),
    "top_p": ("model.sweep.top_p", 1.0),
    "ignore_eos": ("model.sweep.stop_at_eos", False),
}
"""Fields of an engine's request: the option that they come from, and the value that asks for nothing."""


_LISTING = 10.0
"""Seconds that the list of models is waited for: it is a courtesy."""


@dataclass(frozen=True)
class Kind:
    """What a server says that it is.

    Attributes:
        name: for messages and the record, such as `vLLM 0.32.0`.
        form: how it is asked.
    """

    name: str
    form: Form


def recognise(server: Server, trouble: Trouble | None = None) -> Kind:
    """The kind of a server, by its own pages; one that says nothing is asked with OpenAI's fields alone.

    Args:
        server: whom to ask.
        trouble: as `call` takes it.

    Raises:
        UserError: it cannot be reached.
    """
    if server.form is not None:
        return Kind("as server.form says", server.form)
    version = _page(server, "/version", trouble).get("version")
    if isinstance(version, str):
        return Kind(f"vLLM {version}", "engine")
    for path in ("/get_server_info", "/server_info"):
        if "model_path" in (info := _page(server, path, trouble)):
            return Kind(f"SGLang {info.get('version', '')}".strip(), "engine")
    owners = [OWNERS.get(str(model.get("owned_by"))) for model in listed_models(server)]
    if owners and owners[0]:
        return Kind(owners[0], "engine")
    if "/load_model" in _page(server, "/openapi.json", trouble).get("paths", {}):
        return Kind("transformers serve", "transformers")
    return Kind("unknown", "openai")


def listed_models(server: Server) -> list[Mapping[str, Any]]:
    """The entries of `/v1/models`; none where the list fails, as that of `transformers serve` does without a hub."""
    try:
        listed = call(replace(server, retries=0, timeout=min(server.timeout, _LISTING)), "models").get("data") or []
    except (Refused, UserError):
        return []
    return [entry for entry in listed if isinstance(entry, Mapping)]


def _page(server: Server, path: str, trouble: Trouble | None) -> dict[str, Any]:
    """What a page says; nothing where the server has none.

    Raises:
        UserError: the server cannot be reached.
    """
    try:
        return call(server, path, trouble=trouble)
    except Refused:
        return {}


def refusal(
    server: Server, body: Mapping[str, Any], error: Refused, ask: Callable[[Mapping[str, Any]], Any] | None = None
) -> UserError:
    """The error of a refused completion, which names the option that is refused.

    That is the one that the server names; else the first one without which it answers, or all of them.

    Args:
        server: who refused.
        body: what was asked.
        error: the answer.
        ask: asks once more, to find out; None to go by the answer's words alone.
    """
    nested = body.get("sampling_params")  # SGLang's
    given = body if nested is None else nested
    asked = {field: none for field, (_, none) in _OPTIONS.items() if given.get(field, none) != none}
    named = [field for field in asked if field in str(error)]
    if not named and ask is not None:
        trials = [{field: none} for field, none in asked.items()] + [asked]
        changed = ({**given, **some} for some in trials)
        bodies = [one if nested is None else {**body, "sampling_params": one} for one in changed]
        pairs = zip(trials, bodies, strict=True)
        named = list(next((some for some, one in pairs if some and _answers(ask, one)), ()))
    if not named:
        return UserError(f"{server.url} refuses: {error}; check server.model and the API key")
    options = " and ".join(f"{_OPTIONS[field][0]} (got {field} {given[field]})" for field in named)
    return UserError(f"{server.url} refuses {options}: {error}; leave it out, or ask a server that can do it")


def _answers(ask: Callable[[Mapping[str, Any]], Any], body: Mapping[str, Any]) -> bool:
    try:
        ask(body)
    except Refused:
        return False
    return True
