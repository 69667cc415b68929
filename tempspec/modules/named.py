"""Plugins given by name, from Python as in a configuration (floor 5).

A command line knows the class that a name means before a module is made, from the annotation of the option. Its
parser must so see the plugin's base alone: with `str` beside it any text would be taken as it is.
"""

import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tempspec import registry
from tempspec.errors import UserError
from tempspec.interfaces import Divergence, Drafter, DraftHead, DraftLength, TemperatureSchedule, Verifier

__all__ = ["DivergenceLike", "DrafterLike", "HeadLike", "LengthLike", "ScheduleLike", "VerifierLike", "plugin"]

if TYPE_CHECKING:
    DivergenceLike = Divergence | str
    DrafterLike = Drafter | str
    HeadLike = DraftHead | str
    LengthLike = DraftLength | str
    ScheduleLike = TemperatureSchedule | str
    VerifierLike = Verifier | str
else:
    DivergenceLike, DrafterLike, HeadLike, LengthLike = Divergence, Drafter, DraftHead, DraftLength
    ScheduleLike, VerifierLike = TemperatureSchedule, Verifier

P = TypeVar("P")


def plugin(family: str, given: P | str) -> P:
    """What is given, or a plugin of this name with its own defaults.

    Args:
        family: a key of `tempspec.registry.FAMILIES`.
        given: a plugin, or the name of a registered one.

    Raises:
        UserError: no such name, the plugin cannot be used, or it has options without a default.

    >>> type(plugin("verifiers", "BlockVerification")).__name__
    'BlockVerification'
    >>> plugin("schedules", "Uniform")
    Traceback (most recent call last):
    ...
    tempspec.errors.UserError: Uniform needs options, got only its name: make one, such as tempspec.Uniform(low=...
    """
    if not isinstance(given, str):
        return given
    cls: Any = registry.get(family, given)
    needed = [
        option.name
        for option in inspect.signature(cls).parameters.values()
        if option.default is option.empty and option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD)
    ]
    if needed:
        options = ", ".join(f"{name}=..." for name in needed)
        raise UserError(f"{given} needs options, got only its name: make one, such as tempspec.{given}({options})")
    return cast(P, cls())
