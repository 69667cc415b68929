"""How these runs came about: versions, hardware, seeds, digests, and what their configurations differ in (floor 5)."""

import json
from collections.abc import Mapping
from typing import Any

from tempspec.reporting.changes import changes
from tempspec.reporting.page_tables import Field, Sheet
from tempspec.reporting.runs import Collection
from tempspec.reporting.sections.common import Section

__all__ = ["provenance"]


def provenance(collection: Collection) -> Section:
    """The last section of every report."""
    rows: list[list[Field]] = [
        [run.name, stage, name, _words(value)]
        for run in collection.runs
        for stage, environment in run.environments.items()
        for name, value in [*environment.items(), ("seed", run.configs[stage].get("seed_everything"))]
    ]
    sheets = [Sheet("provenance", "Versions, hardware, seeds, data digests", ["run", "stage", "fact", "value"], rows)]
    for stage in ("fit", "validate", "predict"):
        configs = {run.name: run.configs[stage] for run in collection.runs if run.configs.get(stage)}
        if len(configs) > 1 and (changed := changes(configs)):
            table: list[list[Field]] = [[name, *values] for name, values in changed.items()]
            sheets.append(
                Sheet(f"changes-{stage}", f"What changed in the configurations of {stage}", ["option", *configs], table)
            )
    return Section("provenance", "Provenance", "How these numbers came about.", [], sheets)


def _words(value: Any) -> str:
    """A fact of environment.json on one line.

    >>> _words({"versions": {"torch": "2.8", "x": None}, "cores": 2, "accelerators": []})
    'versions: (torch: 2.8, x: -), cores: 2, accelerators: -'
    """
    if isinstance(value, Mapping):
        inner = {name: _words(entry) for name, entry in value.items()}
        return ", ".join(f"{k}: ({v})" if isinstance(value[k], Mapping) else f"{k}: {v}" for k, v in inner.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "-"
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
