"""A run of an engine that leaves its models as they were (floor 4)."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from tempspec.interfaces import Completion
from tempspec.models.attention import attending_in_groups

if TYPE_CHECKING:
    from tempspec.decoding.engine import Engine

__all__ = ["left_as_found"]

Options = ParamSpec("Options")


def left_as_found(
    run: "Callable[Concatenate[Engine, Options], Iterator[Completion]]",
) -> "Callable[Concatenate[Engine, Options], Iterator[Completion]]":
    """A run that leaves the models as they were, however it ends: a conditioned draft at tau = 1, and sdpa plain."""

    @wraps(run)
    def running(engine: "Engine", /, *args: Options.args, **options: Options.kwargs) -> Iterator[Completion]:
        try:
            with attending_in_groups(*engine._models):
                yield from run(engine, *args, **options)
        finally:
            engine._condition(None)

    return running
