"""Which model validate, test and predict measure: what this run's fit left, or what is named (floor 6)."""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tempspec.cli.options import Ahead
from tempspec.own_yaml import read_own_yaml

__all__ = ["MEASURING", "measure_what_was_trained"]

MEASURING = ("validate", "test", "predict")
"""The subcommands that measure a model."""

_LEFT = {
    "distillation": ("draft", "draft", {"draft_layers": None, "draft_width": None}),
    "language-model": ("model", "pretrained", {"shape": None}),
}
"""By task: fit's folder of it, the option that names one, and what else names a model, with what says nothing."""


def measure_what_was_trained(options: Any, task: str, ahead: Ahead) -> str:
    """Let a measuring subcommand read what this run's fit left.

    Not where the command line names a model, or asks for the one `--before` fit.

    Args:
        options: the parsed configuration of the subcommand, without a checkpoint; changed in place.
        task: what is run.
        ahead: what the command line itself says.

    Returns:
        A line that says which model is measured; empty where there is nothing to say.
    """
    folder, option, others = _LEFT[task]
    if options.model.get("head") is not None:
        folder = "head"
    fit = Path(options.run) / "fit"
    trained = fit / folder
    if ahead.names("before", f"model.{option}", *(f"model.{other}" for other in others)):
        return ""
    if not (trained / "config.json").is_file():
        return f"{fit} has left no {folder} yet: measuring what the configuration names" if fit.is_dir() else ""
    if options.before:  # as the record of a stage says that was asked for it
        return f"measuring the {folder} that the configuration names, as before: true asks for; not {trained}"
    options.model[option] = str(trained)
    for name, nothing in others.items():
        options.model[name] = nothing
    which = f"that this run trained, {trained}"
    if _fit_anew(trained):
        which = f"of an earlier fit, {trained}, as the last fit of this run has left none"
    return f"measuring the {folder} {which}; --before measures what the configuration names"


def _fit_anew(trained: Path) -> bool:
    """Whether a fit has begun since with another configuration, and left nothing: it keeps that from its first batch.

    Args:
        trained: the folder of the model, with the record beside it that a fit keeps of what made it.
    """
    try:
        made = read_own_yaml(trained.with_name(f"{trained.name}.yaml").read_text(encoding="utf-8"))["config"]
        begun = read_own_yaml((trained.parent / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):  # of an earlier version, say
        return False
    return bool(made != begun)
