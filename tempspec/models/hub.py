"""Whether the hub answers: it is asked once and quickly, without the retries of the libraries (floor 3)."""

import logging
from collections.abc import Callable

from huggingface_hub.errors import HfHubHTTPError

from tempspec.errors import UserError

__all__ = ["HUB_SECONDS", "hub_is_silent"]

logger = logging.getLogger(__name__)

HUB_SECONDS = 10.0
"""How long the hub may take to say that a name exists before only the local cache is tried."""


def hub_is_silent(ask: Callable[[], object]) -> bool:
    """Whether the hub gives no answer, so that only the local cache can be used.

    Args:
        ask: asks it once, quickly; a `UserError` of its own goes through.
    """
    try:
        ask()
    except UserError:
        raise
    except HfHubHTTPError as error:  # an answer, unless the hub itself has failed
        return error.response.status_code >= 500
    except Exception as error:  # the transport's errors have no common base across versions: no network, proxy, timeout
        logger.debug("the hub did not answer: %s", error)
        return True
    return False
