"""Whether the optimiser took a step, and which of a step's batches comes (floor 5)."""

__all__ = ["StepClock"]


class StepClock:
    """Follows the number of optimiser steps from batch to batch; under gradient accumulation several are of one step.

    The trainer's own number of a batch will not do: it begins anew where a finished run is continued for longer.

    Args:
        step: the optimiser steps taken when it starts; by default those of no run, so that the first batch is new.
    """

    def __init__(self, step: int = -1) -> None:
        self.step = step
        self._number = -1

    def stepped(self, step: int) -> bool:
        """Whether steps were taken since it was asked last.

        >>> clock = StepClock(3)
        >>> [clock.stepped(step) for step in (3, 4, 4, 5)]
        [False, True, False, True]
        """
        before, self.step = self.step, step
        return step != before

    def number(self, step: int) -> int:
        """Which of its step's batches the coming one is: 0, and more under accumulation; called once per batch.

        >>> clock = StepClock()
        >>> [clock.number(step) for step in (0, 0, 1, 2, 2)]
        [0, 1, 0, 0, 1]
        """
        self._number = 0 if self.stepped(step) else self._number + 1
        return self._number
