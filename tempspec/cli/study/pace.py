"""Seconds that a token takes where nothing of a study is finished yet: guessed from its models' sizes (floor 6)."""

import math
from pathlib import Path

from safetensors import safe_open

__all__ = ["STEPS", "guessed", "parameters"]

STEPS = {"corpus": 5.0, "target-fit": 75.0, "draft-fit": 20.0}
"""Seconds of each step of the preparation, on one free core."""

_OVERHEAD = {
    "sampled": 6e-4,
    "training": 6e-4,
    "fitting": 6e-4,
    "cache": 1e-4,
    "fit": 1.6e-4,
    "validate": 6e-4,
    "predict": 2e-3,
}
"""Seconds per token for the quickstart's pair, whose models are so small that little of it is their products."""

_PASSES = {
    "sampled": (1.5, 0.0),
    "training": (1.5, 0.0),
    "fitting": (1.5, 0.0),
    "cache": (1.0, 0.0),
    "fit": (1.0, 3.0),
    "validate": (1.0, 1.0),
    "predict": (2.5, 2.0),
}
"""How often each model multiplies a token with all its weights: target, draft. A text's prompt is half a pass more."""

_PRODUCTS = 3e10
"""Multiplications of a float32 product per second and core: half of what a core of a server can do."""


def guessed(stage: str, target: float, draft: float) -> float:
    """Seconds per token of a stage on one free core, or of a step of the preparation.

    Args:
        stage: its name.
        target: parameters of the target; 0 where they are unknown.
        draft: of the draft.

    >>> guessed("validate", 1.5e9, 0.5e9) > 50 * guessed("validate", 1e6, 1e6)
    True
    """
    if stage in STEPS:
        return STEPS[stage]
    of_target, of_draft = _PASSES[stage]
    return _OVERHEAD[stage] + (of_target * target + of_draft * draft) / _PRODUCTS


def parameters(folder: object) -> float:
    """How many numbers a model's folder holds, by its files' headers; 0 where there are none."""
    return float(sum(map(_held, Path(str(folder)).glob("*.safetensors"))))


def _held(file: Path) -> int:
    with safe_open(file, "numpy") as opened:
        shapes = (opened.get_slice(name).get_shape() for name in opened.keys())
        return sum(map(math.prod, shapes))
