"""What the quickstart's steps are made of: a packaged configuration filled in, and a command line (floor 6)."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tempspec.cli.steps import Step
from tempspec.errors import UserError
from tempspec.files import write_atomically

__all__ = ["corpus_step", "lightning_step", "report_step", "write_config"]


def write_config(name: str, folder: Path, **values: int | str) -> Path:
    """Write a packaged configuration, filled in; returns its path.

    Args:
        name: of the template, without `.yaml`.
        folder: the quickstart's, `$folder` in the template.
        values: what else the template leaves open, by name.
    """
    template = yaml.safe_load(resources.files(__package__).joinpath(f"{name}.yaml").read_text("utf-8"))
    written = folder / "configs" / f"{name}.yaml"
    filled = _filled(template, {f"${key}": value for key, value in values.items()}, folder.as_posix())
    write_atomically(written, yaml.safe_dump(filled, sort_keys=False, allow_unicode=True))
    return written


def _filled(part: Any, values: Mapping[str, int | str], folder: str) -> Any:
    """A part of a template with its values in place; as text of YAML a path could mean something else."""
    if isinstance(part, dict):
        return {name: _filled(inner, values, folder) for name, inner in part.items()}
    if not isinstance(part, str):
        return part
    return values[part] if part in values else part.replace("$folder", folder)


def corpus_step(folder: Path, title: str = "texts to learn and to measure on, and a tokenizer") -> Step:
    """The step that makes the corpus.

    Args:
        folder: the quickstart's.
        title: what it is for, for the screen.
    """
    corpus = folder / "corpus"
    return Step(
        "corpus",
        title,
        f"python -m tempspec.cli.quickstart.corpus {shlex.quote(str(corpus))}",
        lambda: _call("-m", "tempspec.cli.quickstart.corpus", str(corpus)),
        (corpus,),
    )


def lightning_step(title: str, command: str, config: Path, run: Path, *more: str) -> Step:
    """A step that is a subcommand of tempspec with a configuration.

    Args:
        title: what it does, for the screen.
        command: the subcommand.
        config: its configuration.
        run: the folder of the run, which names the step.
        more: further options.
    """
    line = (command, "--config", str(config), *more)

    def execute() -> None:
        last = run / "fit" / "checkpoints" / "last.ckpt"
        resume = ("--ckpt_path", "last") if command == "fit" and last.exists() else ()
        _call("-m", "tempspec", *line, *resume)

    shown = shlex.join(("tempspec", *line))
    return Step(f"{run.name}-{command}", title, shown, execute, (run / command,), (config.read_text("utf-8"),))


def report_step(folder: Path) -> Step:
    """The step that writes the page of both runs."""
    report = folder / "report"
    line = ("report", str(folder / "before"), str(folder / "distilled"), "--output", str(report))
    return Step(
        "report",
        "write a page with the figures and tables of both",
        shlex.join(("tempspec", *line)),
        lambda: _call("-m", "tempspec", *line),
        (report,),
    )


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
