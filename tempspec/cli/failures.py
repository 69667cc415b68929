"""What Lightning and torch raise over an option, told in one line; a fault of our own keeps its traceback (floor 6)."""

from collections.abc import Iterator
from types import TracebackType

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from tempspec.cli.errors import one_line
from tempspec.errors import UserError
from tempspec.modules.processes import lost_another

__all__ = ["as_user_error", "refused_options"]

_RESTORING = ("Error(s) in loading state_dict", "loaded state dict", "Trying to restore")
"""How torch and Lightning begin to say that a checkpoint does not fit."""

_REFUSALS = (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError)
"""What Lightning raises over an option besides its own class."""

_BUILT_OF_OPTIONS = ("torch.optim", "torch.utils.data")
"""Modules of torch whose constructors get options as they are: a learning rate, a number of workers."""

_DETERMINISTIC = "torch.use_deterministic_algorithms"


def as_user_error(error: Exception, checkpoint: str | None = None) -> UserError | None:
    """The one line for an error that an option has caused; None for what is rather a defect.

    Lightning's own checks raise in its own modules with nothing of ours called in between: their text is for whoever
    chose the option.

    Args:
        error: what a run raised.
        checkpoint: the file that the run was to resume from.
    """
    told = " ".join(str(error).split()).strip("'\"")
    if checkpoint is not None and "different number of parameter groups" in told:
        return UserError(
            f"the checkpoint {checkpoint} keeps the state of an optimizer with other groups of weights, as earlier "
            "versions of tempspec had: begin another run, or resume with a new optimizer by --resume_changed true"
        )
    if checkpoint is not None and told.startswith(_RESTORING):
        return UserError(
            f"the checkpoint {checkpoint} does not fit this configuration's model or optimizer; give the one that "
            "fit left, or the configuration that it was trained with (config.yaml next to checkpoints/)"
        )
    if lost_another(error):
        return UserError("another process of this run has ended: its own message says why")
    if isinstance(error, torch.OutOfMemoryError):
        return UserError("out of memory: lower data.batch_size, data.max_length or model.sweep.slots")
    if isinstance(error, MisconfigurationException) or _is_refusal(error):
        return UserError(told)
    if _DETERMINISTIC in told:
        return UserError(f"{told.partition('. ')[0]}; set trainer.deterministic: warn")
    return None


def refused_options(error: Exception) -> UserError:
    """The one line for what a constructor, or jsonargparse on the way to it, raised over its options.

    jsonargparse wraps what a constructor raises in a report on all types that an option may have.
    """
    cause: BaseException = error
    while cause.__cause__ is not None and any(
        _of(name, "jsonargparse") for name in [*_modules(cause.__traceback__)][-1:]
    ):
        cause = cause.__cause__
    return UserError(one_line(str(cause)))


def _is_refusal(error: Exception) -> bool:
    """Whether Lightning, or a constructor of torch that is given options, raised this."""
    modules = list(_modules(error.__traceback__))
    if not isinstance(error, _REFUSALS) or not modules:
        return False
    within = modules[max((n for n, name in enumerate(modules) if _of(name, "tempspec.cli")), default=-1) + 1 :]
    ours = any(_of(name, "tempspec") for name in within)
    if any(_of(modules[-1], package) for package in _BUILT_OF_OPTIONS):
        return isinstance(error, ValueError | TypeError)
    return _of(modules[-1], "lightning") and not ours


def _modules(traceback: TracebackType | None) -> Iterator[str]:
    """The modules of a traceback's frames, the one that raised last."""
    while traceback is not None:
        yield str(traceback.tb_frame.f_globals.get("__name__", ""))
        traceback = traceback.tb_next


def _of(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
