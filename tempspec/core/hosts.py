"""What a tensor costs a host that reads it: nothing on a CPU, a wait for everything before it on a GPU (floor 1)."""

from torch import Tensor


def reads_free(value: Tensor) -> bool:
    """Whether the host may ask for values, such as which rows need work; elsewhere all rows are worked on.

    >>> import torch
    >>> reads_free(torch.zeros(1))
    True
    """
    return value.device.type == "cpu"
