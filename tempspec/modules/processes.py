"""What one process has, told to all (floor 5)."""

from typing import TypeVar

import torch

__all__ = ["of_all"]

Value = TypeVar("Value")


def of_all(value: Value) -> list[Value]:
    """Every process' value, in the order of their ranks; a collective.

    >>> of_all("alone")
    ['alone']
    """
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Value] = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
