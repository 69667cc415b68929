"""The argument parser of the Lightning subcommands (floor 6)."""

import inspect
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from tempspec.cli.messages import OneLineErrors
from tempspec.data.module import TextDataModule

__all__ = ["Parser", "fill_save_dirs"]

_FOLDER = "save_dir"


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
