"""What the outcome of a study's step depends on, and what only says how much of it is wanted (floor 6)."""

import copy
from collections.abc import Iterable
from inspect import signature
from typing import Any

import yaml  # type: ignore[import-untyped]

from tempspec.modules.fit.training import DraftTraining

__all__ = ["Config", "for_cache", "for_decoding", "for_fit", "for_texts", "in_words"]

Config = dict[str, Any]

_MEASURING = ("sweep", "verifiers", "drafter", "length", "validation_temperatures")
"""Options of the model that a fit does not depend on."""

_DRAFT = ("draft", "draft_layers", "draft_spacing", "draft_width", "head", "optimizer", "lr_scheduler")
_TRAINING = (*_DRAFT, *(name for name in signature(DraftTraining).parameters if name not in ("pair", "seed")))
"""Options of the model that no text of the target depends on, and no cache of its logits: what the draft is, and how it
is trained."""

_AMOUNTS = ("target_temperatures", "generation_temperatures", "draft_temperatures", "samples", "slots")
"""Options of a sweep that say which rows are wanted, or how many are decoded at once: no row depends on them."""


def for_texts(config: Config) -> Config:
    """What the target's texts depend on: the target, how it is sampled, and the prompts, but not how many."""
    kept = _without(config, "model", (*_TRAINING, *(set(_MEASURING) - {"sweep"})))
    kept = _without(kept, "data", ("train", "validation", "batch_size", "eval_batch_size"))
    return _without(_unlimited(kept), "trainer", ("max_steps", "max_epochs", "log_every_n_steps", "gradient_clip_val"))


def for_decoding(config: Config) -> Config:
    """What decoded rows depend on, but not how many there are."""
    kept = _without(config, "model", ("validation_temperatures",))
    return _without(_unlimited(kept), "data", ("validation",))


def for_fit(config: Config) -> Config:
    """What a fit depends on: nothing that is only measured."""
    return _without(_without(config, "model", _MEASURING), "data", ("prompts", "validation"))


def for_cache(config: Config, kind: str) -> Config:
    """What a cache of the target depends on; `features` are those that the head reads."""
    trained = [name for name in _TRAINING if (kind, name) != ("features", "head")]
    kept = _without(for_fit(config), "model", (*trained, "seed"))
    kept = _without(kept, "data", ("seed", "batch_size", "eval_batch_size"))
    return {name: value for name, value in kept.items() if name in ("model", "data")}


def in_words(config: Config) -> str:
    """A configuration as YAML, the same for equal ones."""
    return str(yaml.safe_dump(config, sort_keys=True, allow_unicode=True))


def _without(config: Config, section: str, names: Iterable[str]) -> Config:
    """A configuration without some options of a section."""
    if not isinstance(config.get(section), dict):
        return config
    return config | {section: {name: value for name, value in config[section].items() if name not in set(names)}}


def _unlimited(config: Config) -> Config:
    """A configuration without what says how many prompts and temperatures are decoded."""
    found = copy.deepcopy(_without(config, "model", ()))
    for source in (found["data"].get("prompts") or {}).values():
        if isinstance(source, dict):
            source.pop("limit", None)
    sweep = found["model"].get("sweep") or {}
    found["model"]["sweep"] = {name: value for name, value in sweep.items() if name not in _AMOUNTS}
    return found
