"""`tempspec quickstart`: the whole job at a small size, by the plain command lines that do the same (floor 6).

This module orchestrates subprocesses and knows nothing of models: each step is a command line and the files that it
leaves. A step whose command, configuration and inputs are unchanged is not run again; an interrupted one resumes.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tempspec.cli import errors
from tempspec.cli.steps import Step, run_steps
from tempspec.errors import UserError
from tempspec.files import write_atomically

__all__ = ["main", "steps"]

TEMPLATES = ("target", "draft", "before", "distilled")


def main(arguments: Sequence[str]) -> int:
    """Run the quickstart.

    Args:
        arguments: `quickstart` and its options.

    Raises:
        UserError: a wrong option, an unwritable folder, or a step that failed.
    """
    parser = errors.parser("tempspec quickstart", "The whole job in minutes, offline, on a laptop CPU.")
    parser.add_argument("--output", type=str, default="runs/quickstart", help="The folder for everything it makes.")
    folder = Path(parser.parse_args(list(arguments[1:])).output)
    began = time.monotonic()
    run_steps(list(steps(folder)), folder / "steps")
    print(f"\nquickstart: {time.monotonic() - began:.0f} s; everything is in {folder}")
    _show(folder)
    return 0


def steps(folder: Path) -> Iterator[Step]:
    """All steps, in order.

    Args:
        folder: where everything is put.
    """
    configs = _write_configs(folder)
    corpus = folder / "corpus"
    yield Step(
        "corpus",
        "a corpus from this Python's own library, and a tokenizer",
        f"python -m tempspec.cli.quickstart.corpus {shlex.quote(str(corpus))}",
        lambda: _call("-m", "tempspec.cli.quickstart.corpus", str(corpus)),
        (corpus,),
    )
    target, draft, before, distilled = (folder / name for name in TEMPLATES)
    yield _lightning("train a small target on it", "fit", configs["target"], target)
    yield _lightning("train a draft on the same text, without the target", "fit", configs["draft"], draft)
    yield _lightning("acceptance of that draft at every temperature", "validate", configs["before"], before)
    yield _lightning("decode held-out prompts with it", "predict", configs["before"], before)
    yield _lightning("distil the draft from the target", "fit", configs["distilled"], distilled)
    yield _lightning("decode the same prompts again", "predict", configs["distilled"], distilled)


def _lightning(title: str, command: str, config: Path, run: Path) -> Step:
    """A step that is a subcommand of tempspec with a configuration."""
    line = (command, "--config", str(config))

    def execute() -> None:
        last = run / "fit" / "checkpoints" / "last.ckpt"
        resume = ("--ckpt_path", "last") if command == "fit" and last.exists() else ()
        _call("-m", "tempspec", *line, *resume)

    name = f"{config.stem}-{command}"
    return Step(name, title, shlex.join(("tempspec", *line)), execute, (run / command,), (config.read_text("utf-8"),))


def _write_configs(folder: Path) -> dict[str, Path]:
    """Write the packaged configurations with this folder in them."""
    written: dict[str, Path] = {}
    for name in TEMPLATES:
        template = yaml.safe_load(resources.files(__package__).joinpath(f"{name}.yaml").read_text("utf-8"))
        written[name] = folder / "configs" / f"{name}.yaml"
        filled = _filled(template, folder.as_posix())
        write_atomically(written[name], yaml.safe_dump(filled, sort_keys=False, allow_unicode=True))
    return written


def _filled(value: Any, folder: str) -> Any:
    """A part of a template with the folder in its texts; as text of YAML a path could mean something else."""
    if isinstance(value, dict):
        return {name: _filled(part, folder) for name, part in value.items()}
    return value.replace("$folder", folder) if isinstance(value, str) else value


def _call(*arguments: str) -> None:
    """Run a Python subprocess on this screen.

    Raises:
        UserError: it failed; it has said why.
        SystemExit: it was interrupted.
    """
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code in (130, 143, -2, -15):
        raise SystemExit(130 if code in (130, -2) else 143)
    if code:
        raise UserError(f"this step ended with exit code {code}; fix what it says and run quickstart again to resume")


def _show(folder: Path) -> None:
    """Print the table of both decodings and draw the curves."""
    # imported here: the steps above need neither torch nor matplotlib, and must begin at once
    from tempspec.cli.quickstart.results import show

    show(folder / "before" / "predict", folder / "distilled" / "predict", folder)
