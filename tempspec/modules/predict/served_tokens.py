"""Whether a server's tokens are possible under the truncation that it was asked for, on a sample (floor 5).

A server that ignores an option answers as if it had none, and its text shows nothing. Engines that return
log-probabilities of a given text show it: they are asked for those of what they have just written.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from tempspec.core.acceptance import WHOLE, Truncation
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.modules.engine_forms import EngineForm, Post

__all__ = ["SLACK", "check_truncation", "excluded_by"]

PROMPTS = 4
TOKENS = 16
LISTED = 20
"""Log-probabilities asked for at each token; the most that vLLM gives by default."""

SLACK = 0.5
"""In nats: how far half precision may move a log-probability between two calls, with room to spare."""


def excluded_by(logp: Mapping[int, float], token: int, temperature: float, cut: Truncation) -> list[str]:
    """The options of a truncation that leave a token no probability; those alone that do so beyond doubt.

    Args:
        logp: log-probabilities in nats at temperature 1, of the most likely tokens and of this one.
        token: which was sampled.
        temperature: at which, above 0.
        cut: as `model.sweep` has it. Each option is applied to the whole law, which it cuts least.

    >>> law = {0: math.log(0.8), 1: math.log(0.15), 2: math.log(0.05)}
    >>> excluded_by(law, 2, 1.0, Truncation(top_k=1, top_p=0.7, min_p=0.3))
    ['top_k', 'top_p', 'min_p']
    >>> excluded_by(law, 1, 1.0, Truncation(top_k=2))
    []
    """
    above = [value for value in logp.values() if value > logp[token] + SLACK]
    beyond = _log_odds(_least_mass(logp, token, above, temperature)) - _log_odds(cut.top_p)
    found = {
        "top_k": 0 < cut.top_k <= len(above),
        "top_p": cut.top_p < 1 and beyond > SLACK,
        "min_p": cut.min_p > 0 and (logp[token] + SLACK - max(logp.values())) / temperature < math.log(cut.min_p),
    }
    return [name for name, excluded in found.items() if excluded]


def _least_mass(logp: Mapping[int, float], token: int, above: Sequence[float], temperature: float) -> float:
    """What the tokens above another have at least at a temperature, where the law is known of some tokens alone.

    At a temperature of 1 or less each unlisted token has at most the ratio of the least likely listed one to its own
    mass. Above 1, spread over a vocabulary, they could have anything: 0 is returned.
    """
    least = min((value for other, value in logp.items() if other != token), default=None)
    if temperature > 1 or least is None:
        return 0.0
    rest = max(0.0, 1.0 - sum(map(math.exp, logp.values()))) * math.exp(least * (1 / temperature - 1))
    total = sum(math.exp(value / temperature) for value in logp.values()) + rest
    return sum(math.exp(value / temperature) for value in above) / total


def _log_odds(probability: float) -> float:
    if probability <= 0 or probability >= 1:
        return -math.inf if probability <= 0 else math.inf
    return math.log(probability) - math.log1p(-probability)


def check_truncation(
    url: str, engine: EngineForm, post: Post, due: Sequence[tuple[Mapping[str, Any], Request]]
) -> None:
    """Let a server continue some prompts, and look at every token that it sampled; one line where that cannot be done.

    Args:
        url: of the server, for messages.
        engine: how it is asked.
        post: asks for a completion.
        due: requests, as they are posted and as they are meant; those at temperature 0 are left out.

    Raises:
        UserError: it sampled what an option excludes; the option is named.
    """
    warm = [pair for pair in due if pair[1].target_temperature > 0 and _cut(pair[1]) != WHOLE]
    sample = warm[:: max(1, len(warm) // PROMPTS)][:PROMPTS]
    if not sample:
        return
    checked, wrong = 0, dict.fromkeys(("top_k", "top_p", "min_p"), 0)
    for body, request in sample:
        for logp, token in engine.sampled(post, body, TOKENS, LISTED):
            checked += 1
            for name in excluded_by(logp, token, request.target_temperature, _cut(request)):
                wrong[name] += 1
    if not checked:
        rank_zero_info(f"{url} returns no log-probabilities of what it has written: its tokens are not checked")
    for name, count in wrong.items():
        if count:
            raise UserError(
                f"{url} ignores model.sweep.{name}: {count} of {checked} tokens that it sampled are impossible under "
                f"{name} {getattr(_cut(sample[0][1]), name):g}; leave it out, or ask a server that applies it"
            )


def _cut(request: Request) -> Truncation:
    return Truncation(request.top_k, request.top_p, request.min_p)
