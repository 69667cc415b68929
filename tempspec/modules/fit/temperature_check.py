"""Whether text, loss and validation are at the same temperatures: one line at the start of fit (floor 5)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Span", "inconsistency"]


class Span(NamedTuple):
    """The least and the largest temperature of something."""

    low: float
    high: float

    @classmethod
    def of(cls, temperatures: Sequence[float]) -> "Span | None":
        """The span of all that are known and above 0; None where there are none.

        >>> Span.of([0.0, 1.5, float("nan"), 0.5])
        Span(low=0.5, high=1.5)
        """
        known = [float(temperature) for temperature in temperatures if temperature > 0]
        return cls(min(known), max(known)) if known else None

    def same(self, other: "Span") -> bool:
        """Whether both ends agree within a hundredth."""
        return all(math.isclose(one, two, rel_tol=1e-2) for one, two in zip(self, other, strict=True))

    def __str__(self) -> str:
        """As a reader would write it."""
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


def inconsistency(generation: Span | None, loss: Span | None, validation: Span | None) -> str | None:
    """One line where the temperatures differ, None where they agree or are not known well enough to tell.

    >>> inconsistency(Span(0.7, 0.7), Span(1.0, 1.0), Span(1.0, 1.0))
    'temperatures differ: text sampled at 0.7, loss at 1, validation at 1'
    >>> inconsistency(Span(1.0, 1.0), Span(1.0, 1.0), Span(1.0, 1.0)) is None
    True
    """
    known = [span for span in (generation, loss, validation) if span is not None]
    if generation is not None and all(span.same(known[0]) for span in known):
        return None
    text = "text of unknown temperature" if generation is None else f"text sampled at {generation}"
    parts = [text, "loss as the schedule decides" if loss is None else f"loss at {loss}"]
    parts += [] if validation is None else [f"validation at {validation}"]
    return f"temperatures differ: {', '.join(parts)}"
