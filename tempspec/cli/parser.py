"""The argument parser of the Lightning subcommands (floor 6)."""

from lightning.pytorch.cli import LightningArgumentParser

from tempspec.cli.messages import OneLineErrors

__all__ = ["Parser"]


class Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser, with errors in one line."""
