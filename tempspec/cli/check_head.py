"""`tempspec check-head`: what engines would misread in a head's folder, and what it accepts (floor 6)."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse.typing import NonNegativeInt

from tempspec.cli import errors
from tempspec.cli.screen import quiet
from tempspec.errors import UserError
from tempspec.models.conditioning import FILE as CONDITIONING
from tempspec.models.eagle3 import Eagle3
from tempspec.models.eagle3.faults import head_faults, head_notes
from tempspec.models.loading import load_config

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Print every fault, what must be known to serve the head, and its acceptance on a few prompts.

    Args:
        arguments: `check-head` and its options.

    Returns:
        0 where there is no fault, 1 where there is one.

    Raises:
        UserError: a wrong option, no such target, or a folder without a head.
    """
    parser = errors.parser("tempspec check-head", "What engines would misread in a head's folder.")
    parser.add_argument("folder", type=str, help="The folder of an EAGLE-3 head, of either format.")
    parser.add_argument("--target", type=str, required=True, help="The target: a folder or a hub name.")
    parser.add_argument(
        "--tokens",
        type=NonNegativeInt,
        default=64,
        help="Tokens of each measured answer; 0 measures nothing.",
    )
    options = parser.parse_args(list(arguments[1:]))
    quiet()
    folder = Path(options.folder).expanduser()
    faults = head_faults(folder, load_config(options.target))
    for fault in faults:
        print(f"fault: {fault}")
    for note in head_notes(folder):
        print(f"note: {note}", flush=True)
    if options.tokens:
        for line in _measured(folder, options.target, options.tokens):
            print(line)
    print(f"{options.folder}: {_count(len(faults))}")
    return 1 if faults else 0


def _measured(folder: Path, target: str, tokens: int) -> list[str]:
    """Acceptance by temperature and position, a line each; why there is none, where a fault forbids it."""
    if (folder / CONDITIONING).is_file():
        return ["note: its acceptance is not measured: an engine has it without what the temperature changes"]
    # Imported here: what only looks at files takes no models.
    from tempspec.cli.head_acceptance import PROMPTS, head_acceptance

    print(f"decoding {len(PROMPTS)} prompts with it; --tokens 0 leaves that out", file=sys.stderr, flush=True)
    try:
        return [str(found) for found in head_acceptance(Eagle3(), folder, target, tokens=tokens)]
    except UserError as error:
        return [f"note: its acceptance is not measured: {error}"]


def _count(faults: int) -> str:
    """The number of faults in words."""
    return {0: "no fault", 1: "1 fault"}.get(faults, f"{faults} faults")
