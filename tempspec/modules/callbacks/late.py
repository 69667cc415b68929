"""A value that the host reads a step later than the device computes it, so that neither waits (floor 5)."""

import torch
from torch import Tensor

__all__ = ["Late"]


class Late:
    """A small tensor on its way to the host.

    Reading a tensor of a GPU waits for all work that was given to it before. This one's copy is asked for at once, and
    whoever reads it later waits for that copy alone, which is long done.

    Args:
        value: the tensor.

    >>> Late(torch.tensor(2.5)).read()
    tensor(2.5000)
    """

    def __init__(self, value: Tensor) -> None:
        self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        self._host.copy_(value.detach(), non_blocking=True)
        self._copied = torch.cuda.current_stream(value.device).record_event() if value.is_cuda else None

    def read(self) -> Tensor:
        """The value, on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host
