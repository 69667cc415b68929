"""What differs between the configurations of runs (floor 5)."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["changes", "flat"]

_PLACES = {"run", "data.cache_dir"}
"""Where files are put: different in every run, and nothing that a result depends on."""


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A configuration with dotted names; values as JSON.

    >>> flat({"model": {"draft": "d", "sweep": {"samples": 2}}, "seed": None})
    {'model.draft': '"d"', 'model.sweep.samples': '2', 'seed': 'null'}
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = json.dumps(value, default=str, ensure_ascii=False)
    return found


def changes(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Option -> its value in each configuration, for the options that differ; `-` where one is missing.

    >>> changes({"a": {"seed": 1, "run": "x"}, "b": {"seed": 2, "run": "y"}})
    {'seed': ['1', '2']}
    """
    flattened = [flat(config) for config in configs.values()]
    names = sorted({name for config in flattened for name in config} - _PLACES)
    table = {name: [config.get(name, "-") for config in flattened] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}
