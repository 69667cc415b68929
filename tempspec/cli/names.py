"""Which of several names is meant by one that is none of them (floor 6)."""

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]

_ELSEWHERE = {
    "gpus": "trainer.devices",
    "num_gpus": "trainer.devices",
    "epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "per_device_train_batch_size": "data.batch_size",
    "max_seq_length": "data.max_length",
    "max_tokens": "model.sweep.max_new_tokens",
    "output_dir": "run",
    "output": "run",
    "resume": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
}
"""What other programs, and versions of Lightning before 2, call an option of ours."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the empty string.

    >>> did_you_mean("stop", ["top_p", "stop_at_eos"]), did_you_mean("stop", ["min_p"])
    ("did you mean 'stop_at_eos'?", '')
    """
    close = _closest(name, list(names))
    return f"did you mean {close!r}?" if close else ""


def _closest(name: str, names: list[str]) -> str | None:
    """The name that is meant: what another program calls so, the same last part elsewhere, its words, its letters.

    >>> _closest("--trainer.gpus", ["--trainer.plugins", "--trainer.devices"])
    '--trainer.devices'
    >>> _closest("--model.batch_size", ["--model.beta", "--data.batch_size"])
    '--data.batch_size'
    >>> _closest("--model.targt", ["--data.train", "--model.target"])
    '--model.target'
    """
    dashes = "--" if name.startswith("--") else ""
    section, last = _split(name)
    if (known := _ELSEWHERE.get(last)) and _split(known)[0] in _sections(names):
        return dashes + known
    parts = {other: _split(other) for other in names}
    alike = [other for other in names if parts[other][1] == last]
    words = set(last.split("_"))
    alike += [other for other in names if parts[other][0] == section and words < set(parts[other][1].split("_"))]
    return next(iter(alike or difflib.get_close_matches(name, names, n=1, cutoff=0.6)), None)


def _split(name: str) -> tuple[str, str]:
    """The section of an option, and its own name."""
    section, _, last = name.removeprefix("--").rpartition(".")
    return section, last


def _sections(names: Iterable[str]) -> set[str]:
    """The options themselves, which may be sections, and all that they are parts of."""
    found = {"", *(name.removeprefix("--") for name in names)}
    for name in list(found):
        while name := _split(name)[0]:
            found.add(name)
    return found
