"""The argument parser of the Lightning subcommands, and the options that they share (floor 6)."""

import inspect
from typing import Any, Literal

from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from tempspec.cli.commands import COMMANDS
from tempspec.cli.errors import OneLineErrors
from tempspec.cli.options import Ahead
from tempspec.cli.trained import MEASURING
from tempspec.cli.wrong_value import allowed_paths
from tempspec.data.module import TextDataModule
from tempspec.errors import UserError
from tempspec.modules.openai_client import Server

__all__ = [
    "Parser",
    "Task",
    "add_shared_options",
    "allow_imports",
    "check_options",
    "described",
    "fill_save_dirs",
    "hidden_arguments",
]

Task = Literal["distillation", "language-model"]

_FOLDER = "save_dir"
_MEASURES = {"model", "datamodule", "dataloaders", "weights_only", "return_predictions", "verbose"}
_NO_OPTIONS = {
    "fit": {"model", "datamodule", "train_dataloaders", "val_dataloaders", "weights_only"},
    "validate": _MEASURES,
    "test": _MEASURES,
    "predict": _MEASURES,
    "generate": {"model", "datamodule"},
}


class Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser, with errors in one line; a logger may leave out its folder, and a data path is no options."""

    def add_class_arguments(self, class_type: type, *args: Any, **kwargs: Any) -> list[str]:
        """As jsonargparse's, with two exceptions.

        Of a logger whose constructor demands a folder, that folder is optional. A path among the data's options names
        data: jsonargparse would read the file for options, and take a JSON list of rows for a list of corpora.
        """
        if class_type is TextDataModule:
            kwargs["sub_configs"] = False
        if inspect.isclass(class_type) and issubclass(class_type, Logger):
            folder = inspect.signature(class_type).parameters.get(_FOLDER)
            if folder is not None and folder.default is inspect.Parameter.empty:
                kwargs["default"] = {**(kwargs.get("default") or {}), _FOLDER: ""}
        return super().add_class_arguments(class_type, *args, **kwargs)


def allow_imports() -> None:
    """Let a configuration name what `allowed_paths` lists, and nothing else."""
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed_paths())


def described(command: str) -> dict[str, str]:
    """What the help of a subcommand begins with: how it is called, and what it does.

    >>> described("test")["usage"], described("test")["description"]
    ('tempspec test --config FILE [--OPTION VALUE ...]', 'The same as validate, on the test sets.')
    """
    _, line = COMMANDS[command]
    usage = f"tempspec {command} --config FILE [--OPTION VALUE ...]"
    return {"usage": usage, "description": f"{line[:1].upper()}{line[1:]}."}


def hidden_arguments(command: str) -> set[str]:
    """The arguments of a subcommand's Trainer method that are no options."""
    return _NO_OPTIONS[command]


def add_shared_options(parser: LightningArgumentParser, task: str, run: str) -> None:
    """Add what tempspec has beside Lightning's own options.

    Args:
        parser: of the subcommand.
        task: the default of `--task`.
        run: the default of `--run`.
    """
    parser.add_argument("--task", type=Task, default=task, help="What is run: decides what `model` takes.")
    parser.add_argument("--run", type=str, default=run, help="The folder that the run leaves.")
    parser.add_argument(
        "--checkpoint_every",
        type=float,
        default=300.0,
        help="Seconds between two checkpoints of fit; 0 for none but at the end and after each validation.",
    )
    parser.add_argument(
        "--resume_changed",
        type=bool,
        default=False,
        help="Let fit resume from --ckpt_path with another objective, optimizer or schedule than the checkpoint's.",
    )
    parser.add_argument(
        "--server",
        type=Server | str | None,
        default=None,
        help="Where generate takes the target's text from, or with --cache-teacher its log-probabilities, instead of "
        "running it: an OpenAI-compatible server's address, or {url: ADDRESS, concurrency: 16, ...}. The API key comes "
        "only from the environment.",
    )
    parser.add_argument(
        "--before",
        action="store_true",
        help="Let validate, test and predict measure the model that the configuration names, not the one that this "
        "run's fit has left.",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="Print what fit takes of each device's memory; run nothing."
    )


def check_options(options: Any, command: str, ahead: Ahead) -> None:
    """Refuse what is of the right type and cannot be used.

    Args:
        options: of the subcommand, parsed.
        command: the subcommand.
        ahead: what the command line itself says; a configuration, which all share, may name another's options.

    Raises:
        UserError: an option of another subcommand, a Trainer without options, a step of no batches, the Trainer's own
            folder, or a server that is to give a target's states.
    """
    for option, owners in (("server", ("generate",)), ("before", MEASURING)):
        if command not in owners and ahead.names(option):
            raise UserError(f"--{option} is an option of {', '.join(owners)}, got it with {command}: leave it out")
    if not isinstance(options.trainer, Namespace):
        raise UserError(f"trainer: expected options, such as {{max_steps: 100}}, got {options.trainer}")
    if (batches := options.trainer.accumulate_grad_batches) < 1:  # which Lightning divides by
        raise UserError(f"trainer.accumulate_grad_batches must be 1 or more, got {batches}")
    if options.get("cache_features") and options.server is not None:
        raise UserError("expected --cache-features or a server, got both: a server gives no states; add --server null")
    if options.trainer.default_root_dir is not None:
        raise UserError("trainer.default_root_dir is made from run; set run: FOLDER instead")


def fill_save_dirs(loggers: Any, folder: str) -> None:
    """Let loggers that name no folder write into the stage's; changed in place.

    Args:
        loggers: `trainer.logger` as it was parsed: none, one or several.
        folder: the stage's folder.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        given = getattr(logger, "init_args", None)
        if given is not None and given.get(_FOLDER) == "":
            given[_FOLDER] = folder
