"""Whether the hub answers: it is asked once and quickly, without the retries of the libraries (floor 3)."""

import logging
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

__all__ = ["HUB_SECONDS", "ask_hub", "hub_is_silent"]

logger = logging.getLogger(__name__)

HUB_SECONDS = 10.0
"""How long the hub may take to say that a name exists before only the local cache is tried."""

_REFUSALS = (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)
"""Answers about the name itself; a gated repository is one of the first kind."""

Info = TypeVar("Info")


def ask_hub(ask: Callable[[], Info]) -> Info | None:
    """What the hub says about a name, or None where it says nothing and only the local cache can be used.

    Args:
        ask: one question, such as `lambda: HfApi().model_info(name, timeout=HUB_SECONDS)`.

    Raises:
        RepositoryNotFoundError: there is no such name, or no permission (`GatedRepoError`).
        RevisionNotFoundError: the name has no such revision.
        HFValidationError: it cannot be a name.
    """
    try:
        return ask()
    except _REFUSALS:
        raise
    except Exception as error:  # the transport's errors have no common base across versions: no network, proxy, timeout
        logger.debug("the hub did not answer: %s", error)
        return None


def hub_is_silent(ask: Callable[[], object]) -> bool:
    """Whether only the local cache can be used; see `ask_hub` for the question and the errors."""
    return ask_hub(ask) is None
