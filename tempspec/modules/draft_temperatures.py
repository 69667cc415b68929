"""The file of fitted draft temperatures: written by validate, read by predict (floor 5)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tempspec.errors import UserError
from tempspec.files import write_atomically
from tempspec.metrics.draft_temperature import FittedTemperature

NAME = "draft_temperatures.json"


def write_fitted(
    folder: Path, fits: Sequence[FittedTemperature], models: Mapping[str, str], text: Sequence[int]
) -> Path:
    """Keep fits with what they were found from.

    Args:
        folder: the stage's folder, `RUN/validate`.
        fits: one a target temperature.
        models: what they were found for: digests of target and draft, and how laws are cut.
        text: the keys of the texts that they were found on; the file has their digest.
    """
    path = folder / NAME
    digest = hashlib.sha256(" ".join(map(str, text)).encode()).hexdigest()[:16]
    content = {"models": dict(models), "text": digest, "fits": [asdict(fit) for fit in fits]}
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    return path


def read_fitted(folder: Path, models: Mapping[str, str]) -> dict[float, float]:
    """tau_d by tau_t.

    Args:
        folder: the stage's folder, `RUN/validate`.
        models: as in `write_fitted`, of who asks.

    Raises:
        UserError: there is no such file, or it was fitted for something else.
    """
    path = folder / NAME
    remedy = "run `tempspec validate` with this configuration, checkpoint and run folder first"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = {float(fit["target_temperature"]): float(fit["draft_temperature"]) for fit in content["fits"]}
        fitted_for = content["models"]
    except FileNotFoundError as error:
        raise UserError(f"draft_temperatures is fitted, expected {path}, got no such file: {remedy}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"expected fitted draft temperatures in {path}, got something else: {remedy}") from error
    changed = sorted(name for name in models if fitted_for.get(name) != models[name])
    if changed:
        raise UserError(f"{path} was fitted for another pair or truncation (changed: {', '.join(changed)}): {remedy}")
    return fits
