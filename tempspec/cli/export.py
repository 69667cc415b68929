"""`tempspec export`: a draft or head as an engine takes it, at one temperature, in a format, of a size (floor 6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tempspec.cli import errors
from tempspec.cli.screen import quiet
from tempspec.errors import UserError
from tempspec.models.conditioning import FILE, at_temperature, is_conditioned
from tempspec.models.eagle3 import Eagle3
from tempspec.models.eagle3.files import is_head_folder
from tempspec.models.head_draft import make_head
from tempspec.models.loading import load_config, load_draft, load_model, load_tokenizer, save_model
from tempspec.models.tapping import head_target
from tempspec.models.vocabulary_size import resize_vocabulary
from tempspec.modules.callbacks.serving_defaults import misread_note
from tempspec.reporting.model_card import write_exported_card

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Fold a draft, or rewrite a head.

    Args:
        arguments: `export` and its options.

    Raises:
        UserError: a wrong option, no such folder, a draft that is as it should be, or an output that holds other files.
    """
    description = (
        "Fold a conditioned draft or head into an ordinary one, give a draft the target's vocab_size, or write an "
        "EAGLE-3 head in another format."
    )
    parser = errors.parser("tempspec export", description)
    parser.add_argument("--draft", type=str, required=True, help="The folder of a draft that fit wrote, or of a head.")
    parser.add_argument("--temperature", type=float | None, default=None, help="The draft temperature to fold at.")
    parser.add_argument("--format", type=Literal["plain", "speculators"] | None, default=None, help="Of a head.")
    parser.add_argument(
        "--target", type=str | None, default=None, help="The target of a head, or of a draft of another vocab_size."
    )
    parser.add_argument("--output", type=str, required=True, help="The folder to write.")
    options = parser.parse_args(list(arguments[1:]))
    quiet()
    return _head(options) if is_head_folder(Path(options.draft).expanduser()) else _draft(options)


def _draft(options: Any) -> int:
    """Fold a draft, give it the target's vocab_size, or both."""
    if options.target is None:
        _check_temperature(options)
    _check_unused(options, "a draft", "format")
    folder, output = Path(options.draft).expanduser().resolve(), Path(options.output).resolve()
    own, size = _size(options.draft), _size(options.draft if options.target is None else options.target)
    draft, tokenizer = load_draft(options.draft, dtype="float32"), load_tokenizer(options.draft)
    told = _at_temperature(options, is_conditioned(draft))
    if size == own and not told:
        raise UserError(f"{options.draft} has the vocab_size of {options.target}, {size}: it serves as it is")
    _check_output(output, folder)
    written = at_temperature(draft, options.temperature) if told else draft
    added = ""
    if size != own:
        share = resize_vocabulary(written, size, len(tokenizer))
        told += f" with vocab_size {size}"
        added = f"; the ids that were added have at most {share:.1g} of its distribution at T = 1" if share else ""
    # The sum of the weights and their change is rounded once.
    save_model(written, tokenizer, output, dtype=load_config(options.draft).dtype)
    made = ", folded from one that is conditioned on it" if options.temperature is not None else ""
    _finish(options, folder, output, f"This is the draft{told}{made}.", {"target": options.target or "TARGET"})
    print(f"{options.output}: the draft{told}{added}")
    return 0


def _at_temperature(options: Any, conditioned: bool) -> str:
    """The temperature that a draft is folded at, in words; empty for one that is not conditioned.

    Raises:
        UserError: it is conditioned and no temperature is given, or the other way round.
    """
    if conditioned:
        _check_temperature(options)
        return f" at temperature {options.temperature:g}"
    if options.target is None:
        raise UserError(f"{options.draft} is not conditioned on the temperature: it serves as it is")
    _check_unused(options, "a draft that is not conditioned on it", "temperature")
    return ""


def _size(model: str) -> int:
    """The `vocab_size` of a model."""
    return int(load_config(model).get_text_config().vocab_size)


def _head(options: Any) -> int:
    """Write a head in a format, in its own dtype; one that is conditioned at one temperature."""
    folder, output = Path(options.draft).expanduser().resolve(), Path(options.output).resolve()
    conditioned = (folder / FILE).is_file()
    _check_head(options, conditioned)
    _check_output(output, folder)
    head, loaded = Eagle3(), load_model(options.target)
    model, target = make_head(head, loaded, str(folder), None), head_target(loaded)
    own, format = model.dtype, options.format or head.formats[0]
    # The sum of the weights and their change is rounded once.
    written = at_temperature(model.float(), options.temperature) if conditioned else model
    head.save(written, target, output, format, own)
    rows = model.output_RH.shape[0]
    vocabulary = rows if rows < target.config.vocab_size else None
    kind = {"class_path": "Eagle3", "init_args": {"draft_vocabulary": vocabulary}}
    told = f"the head in the {format} format" + (f" at temperature {options.temperature:g}" if conditioned else "")
    _finish(options, folder, output, f"This is {told}.", {"target": options.target, "head": kind})
    print(f"{options.output}: {told}")
    return 0


def _check_head(options: Any, conditioned: bool) -> None:
    """Refuse a head without its target, and one that is conditioned without a temperature; or the other way round.

    Raises:
        UserError: naming what is missing, or too much.
    """
    if options.target is None:
        raise UserError(f"{options.draft} is a head, which is written for its target: add --target MODEL")
    if not conditioned:
        _check_unused(options, "a head that is not conditioned on it", "temperature")
    else:
        _check_temperature(options)


def _finish(options: Any, draft: Path, output: Path, what: str, otherwise: dict[str, Any]) -> None:
    """Write the card of the output, and say what an engine would make of its path."""
    write_exported_card(draft, output, what, otherwise)
    if note := misread_note(options.output, head="head" in otherwise):
        print(note)


def _check_temperature(options: Any) -> None:
    """Refuse to fold at no temperature.

    Raises:
        UserError: it is missing, negative or infinite.
    """
    if options.temperature is None or not 0 <= options.temperature < float("inf"):
        raise UserError(f"--temperature must be 0 or more and finite, got {options.temperature}")


def _check_unused(options: Any, what: str, *names: str) -> None:
    """Refuse options that would do nothing.

    Raises:
        UserError: naming the first.
    """
    for name in names:
        if options[name] is not None:
            raise UserError(f"--{name} is not for {what}, got {options[name]}: leave it out")


def _check_output(output: Path, draft: Path) -> None:
    """Refuse a folder that holds anything but an earlier export, which is replaced.

    Raises:
        UserError: naming what would be lost.
    """
    if output == draft:
        raise UserError(f"--output is the draft's own folder, {output}: choose another, or the draft would be lost")
    exported = {file.name for file in draft.glob("*") if file.is_file()} - {FILE, "README.md"}
    held = {file.name for file in output.iterdir()} if output.exists() else set()
    others = sorted(held - exported - ({"README.md"} if "config.json" in held else set()))
    if others:
        raise UserError(
            f"--output must be a new folder or hold an earlier export, got {output} with {', '.join(others[:3])}: "
            "choose another, or it would be lost"
        )
