"""The quickstart's steps with a model of the user's: as much of each as fits the time (floor 6)."""

from collections.abc import Iterator
from pathlib import Path

from tempspec.cli.quickstart.measuring import dtype_here, measure
from tempspec.cli.quickstart.sizing import ANSWER, BATCH, EPOCHS, Sizes, fitting
from tempspec.cli.quickstart.stages import corpus_step, lightning_step, report_step, write_config
from tempspec.cli.steps import Step
from tempspec.models.loading import load_config

__all__ = ["steps"]


def steps(target: str, minutes: float, folder: Path) -> list[Step]:
    """Measure the model, say how long the steps take, and name them. A second call keeps the sizes of the first.

    Args:
        target: folder or hub name.
        minutes: about how long they may take.
        folder: where everything is put.

    Raises:
        UserError: there is no such model, or the folder is another one's.
    """
    layers = max(1, load_config(target).get_text_config().num_hidden_layers // 8)
    kept = folder / "sizes.json"
    sizes = Sizes.read(kept, target, minutes)
    if sizes is None:
        print(f"quickstart: measuring how fast {target} is here, a minute or two", flush=True)
        sizes = fitting(measure(target, layers, folder), minutes)
        sizes.write(kept, target, minutes)
    print(f"quickstart: {sizes.said(minutes)}", flush=True)
    return list(_steps(target, layers, sizes, folder))


def _steps(target: str, layers: int, sizes: Sizes, folder: Path) -> Iterator[Step]:
    """All steps, in order."""
    numbers = {"layers": layers, "tokens": ANSWER, "answers": sizes.answers, "prompts": sizes.prompts}
    numbers |= {"epochs": EPOCHS, "batch": BATCH}
    config = write_config("own", folder, target=target, dtype=dtype_here(), **numbers)
    before, distilled = folder / "before", folder / "distilled"
    yield corpus_step(folder, "questions about Python code, to learn and to measure on")
    yield lightning_step(f"let the target answer {sizes.answers} questions", "generate", config, distilled)
    yield lightning_step(
        f"decode held-out questions with its first {layers} layers as the draft", "predict", config, before,
        "--before", "--run", str(before),
    )  # fmt: skip
    yield lightning_step("distil that draft on the answers", "fit", config, distilled)
    yield lightning_step("decode the same questions with the distilled draft", "predict", config, distilled)
    yield report_step(folder)
