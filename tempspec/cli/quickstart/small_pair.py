"""The quickstart's steps with a pair of its own: a small target and a draft, trained on the spot (floor 6)."""

from collections.abc import Iterator
from pathlib import Path

from tempspec.cli.quickstart.stages import corpus_step, lightning_step, report_step, write_config
from tempspec.cli.steps import Step

__all__ = ["TEMPLATES", "steps"]

TEMPLATES = ("target", "draft", "before", "distilled")


def steps(folder: Path) -> Iterator[Step]:
    """All steps, in order.

    Args:
        folder: where everything is put.
    """
    configs = {name: write_config(name, folder) for name in TEMPLATES}
    yield corpus_step(folder)
    for name, command, title in (
        ("target", "fit", "train a small target on it"),
        ("draft", "fit", "train a draft on the same text, without the target"),
        ("before", "predict", "decode held-out prompts with that draft"),
        ("distilled", "fit", "distil the draft from the target"),
        ("distilled", "predict", "decode the same prompts with the distilled draft"),
    ):
        yield lightning_step(title, command, configs[name], folder / name)
    yield report_step(folder)
