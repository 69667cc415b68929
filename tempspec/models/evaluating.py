"""Models that are evaluated for a while, amid whatever else is done with them (floor 3)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Models without dropout; afterwards every part of them is as it was.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(model):
    ...     print(model.training)
    False
    >>> [part.training for part in model]
    [True, False]
    """
    before = [(part, part.training) for model in models if model is not None for part in model.modules()]
    for model in models:
        if model is not None:
            model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
