"""`tempspec export`: an ordinary checkpoint of a temperature-conditioned draft, at one temperature (floor 6)."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from tempspec.cli.messages import OneLineErrors
from tempspec.cli.quiet import quiet
from tempspec.errors import UserError
from tempspec.models.conditioning import FILE, fold, is_conditioned
from tempspec.models.loading import load_config, load_draft, load_tokenizer, save_model

__all__ = ["main"]


class _Parser(OneLineErrors, ArgumentParser):
    """Reports a wrong option in one line."""


def main(arguments: Sequence[str]) -> int:
    """Fold a draft and write it.

    Args:
        arguments: `export` and its options.

    Raises:
        UserError: a wrong option, no such folder, a draft that is not conditioned, or an output that holds other files.
    """
    parser = _Parser(prog="tempspec export", description="Fold a conditioned draft into an ordinary checkpoint.")
    parser.add_argument("--draft", type=str, required=True, help="The draft's folder, as fit wrote it.")
    parser.add_argument("--temperature", type=float, required=True, help="The draft temperature to fold at.")
    parser.add_argument("--output", type=str, required=True, help="The folder to write.")
    options = parser.parse_args(list(arguments[1:]))
    if not 0 <= options.temperature < float("inf"):
        raise UserError(f"--temperature must be 0 or more and finite, got {options.temperature}")
    quiet()
    draft = load_draft(options.draft, dtype="float32")
    if not is_conditioned(draft):
        raise UserError(f"{options.draft} is not conditioned on the temperature: it serves as it is")
    _check_output(Path(options.output).resolve(), Path(options.draft).expanduser().resolve())
    own = load_config(options.draft).dtype  # which the sum of the weights and their change is rounded to, once
    save_model(fold(draft, options.temperature), load_tokenizer(options.draft), options.output, dtype=own)
    print(f"{options.output}: the draft at temperature {options.temperature:g}")
    return 0


def _check_output(output: Path, draft: Path) -> None:
    """Refuse a folder that holds anything but an earlier export, which is replaced.

    Raises:
        UserError: naming what would be lost.
    """
    if output == draft:
        raise UserError(f"--output is the draft's own folder, {output}: choose another, or the draft would be lost")
    exported = {file.name for file in draft.glob("*") if file.is_file()} - {FILE, "README.md"}
    others = sorted({file.name for file in output.iterdir()} - exported) if output.exists() else []
    if others:
        raise UserError(
            f"--output must be a new folder or hold an earlier export, got {output} with {', '.join(others[:3])}: "
            "choose another, or it would be lost"
        )
