"""What the processes of a run tell each other, and how they end together (floor 5)."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from tempspec.errors import UserError

__all__ = [
    "RaisedByAll",
    "all_reduced",
    "is_first",
    "lost_another",
    "of_all",
    "orderly_end",
    "raised_by_all",
    "refused_by_all",
]

Value = TypeVar("Value")

_LOST = ("Connection closed by peer", "Connection reset by peer", "Socket Timeout", "remote process exited")
"""How gloo and NCCL say that the process at the other end is gone."""


class RaisedByAll:
    """Mixed into exceptions that every process raises at the same point: they may still wait for each other.

    After any other exception they may not. The others are somewhere else, in a collective that one will never join.
    """


def raised_by_all(exception: BaseException) -> bool:
    """Whether every process raises this exception at the same point.

    Lightning's own is raised at a place where all processes have agreed to stop.

    >>> raised_by_all(SIGTERMException()), raised_by_all(ValueError())
    (True, False)
    """
    return isinstance(exception, RaisedByAll | SIGTERMException)


def lost_another(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone, which has told why.

    >>> lost_another(RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:3544"))
    True
    """
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)


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


@contextmanager
def refused_by_all() -> Iterator[None]:
    """What one process refuses within, every process refuses, so that none waits for it; a collective.

    Raises:
        UserError: that of the first process that has one.
    """
    refused: UserError | None = None
    try:
        yield
    except UserError as error:
        refused = error
    refused = next((error for error in of_all(refused) if error is not None), None)
    if refused is not None:
        raise refused


def is_first() -> bool:
    """Whether this is the first of a run's processes, or the only one.

    >>> is_first()
    True
    """
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def all_reduced(value: Tensor, how: Literal["mean", "max"] = "mean") -> Tensor:
    """The mean, or the largest, of every process' tensor; a collective.

    Unlike Lightning's own, which begins with a barrier, it makes no host wait for its GPU.

    >>> all_reduced(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    if not torch.distributed.is_initialized():
        return value
    found, largest = value.clone(), how == "max"
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM)
    return found if largest else found / torch.distributed.get_world_size()


@contextmanager
def orderly_end() -> Iterator[None]:
    """Let the group of processes end at this process' exit, if what runs within ends well or is stopped on all.

    Lightning ends NCCL's group so. gloo's would be left to the destruction of C++'s static objects, which its threads
    may not survive: the process would abort after all of its work is done. The group is not ended here, as another run
    in this process may use it; nor at all after an exception of this process alone, as its pending collectives would
    be waited for.
    """
    atexit.unregister(_end_group)
    try:
        yield
    except BaseException as error:
        if raised_by_all(error):
            atexit.register(_end_group)
        raise
    atexit.register(_end_group)


def _end_group() -> None:
    """Join the threads of this process' group, if there is one; no other process is waited for."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a model that is wrapped for several processes holds on to the group, and its trainer to it
        torch.distributed.destroy_process_group()
