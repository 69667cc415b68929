"""Which draft a stage measured, and which one a run's fit left: known by their weights, not by their folders (floor 5).

A fit keeps the configuration that made a draft beside it, in `fit/draft.yaml` with the digest of the weights: the
`config.yaml` of a later fit that came to nothing says something else.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tempspec.errors import UserError
from tempspec.files import write_atomically
from tempspec.models.digests import file_digest, weights_digest
from tempspec.own_yaml import read_own_yaml, write_own_yaml

__all__ = [
    "MEASURING",
    "fit_config",
    "fit_of_measured",
    "left_by_fit",
    "measured_draft",
    "of_other_drafts",
    "of_unknown_drafts",
    "own_draft",
    "rows_of_another_draft",
    "write_draft_record",
]

MEASURING = ("validate", "predict")
"""The stages that measure a draft."""

Configs = Mapping[str, Mapping[str, Any]]
"""`config.yaml` by stage."""

# ---------------------------------------------------------------------------------------------------------------------
# What fit left
# ---------------------------------------------------------------------------------------------------------------------


def write_draft_record(draft: Path, config: Mapping[str, Any]) -> None:
    """Keep what made a draft beside it.

    Args:
        draft: the folder that fit has just written.
        config: the configuration of that fit.
    """
    record = {"weights": weights_digest(draft), "config": config}
    write_atomically(_record(draft), write_own_yaml(record))


def left_by_fit(fit: Path) -> Path:
    """The folder of the draft in that of a fit: `draft`, or `head` where that is what it trained.

    Raises:
        UserError: a file of it is broken.
    """
    return fit / ("head" if (_mapping(fit / "config.yaml").get("model") or {}).get("head") else "draft")


def fit_config(draft: Path) -> Mapping[str, Any]:
    """The configuration of the fit that made the draft in this folder; empty where none is found.

    Raises:
        UserError: a file of it is broken.
    """
    record = _mapping(_record(draft))
    if record and record.get("weights") == own_draft(draft):
        return record.get("config") or {}
    return _mapping(draft.parent / "config.yaml")


def own_draft(draft: Path) -> str | None:
    """The digest of the draft in this folder; None where there is none."""
    return weights_digest(draft) if (draft / "config.json").is_file() else None


def fit_of_measured(run: Path, configs: Configs) -> Mapping[str, Any]:
    """The configuration of the fit that left the draft which predict or validate measured; empty if none is found.

    Args:
        run: the run's folder.
        configs: those of its stages.
    """
    for config in (configs[stage] for stage in reversed(MEASURING) if stage in configs):
        if _names_own_draft(run, config):
            return fit_config(left_by_fit(run / "fit"))
        for above in _above_what_is_measured(config):
            if above.name == "fit":
                return fit_config(left_by_fit(above))
    return {}


# ---------------------------------------------------------------------------------------------------------------------
# What a stage measured
# ---------------------------------------------------------------------------------------------------------------------


def measured_draft(stage: Path) -> dict[str, str]:
    """What validate or predict says that it measured: `draft` and `checkpoint`, empty texts where there is none.

    Empty where it says nothing: stages of earlier versions.
    """
    try:
        held = json.loads((stage / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = held.get("measured") if isinstance(held, dict) else None
    return found if isinstance(found, dict) else {}


def of_other_drafts(run: Path, finished: Sequence[str], configs: Configs) -> dict[str, str]:
    """The finished stages whose figures do not belong beside the others', each with a note that says why.

    Args:
        run: the run's folder.
        finished: those of `MEASURING` that came to an end.
        configs: those of its stages.
    """
    found = {
        stage: f"{run / stage} measured a draft that fit has replaced since: left out; rename it and run {stage} again"
        for stage in finished
        if _was_replaced(run, stage, configs[stage])
    }
    drafts = {stage: measured_draft(run / stage) for stage in finished if stage not in found}
    known = [stage for stage in drafts if drafts[stage].get("draft")]
    if len({str(sorted(drafts[stage].items())) for stage in known}) > 1:
        own = {"draft": own_draft(left_by_fit(run / "fit")), "checkpoint": ""}
        kept = next((stage for stage in known if drafts[stage] == own), "predict")
        others = (stage for stage in known if stage != kept)
        found |= {stage: f"{run / stage} measured another draft than {run / kept}: left out" for stage in others}
    return found


def of_unknown_drafts(run: Path, finished: Sequence[str], configs: Configs) -> list[str]:
    """Notes on figures of which nobody can say whether they are of the draft that the run's fit left.

    Args:
        run: the run's folder.
        finished: those of `MEASURING` that came to an end.
        configs: those of its stages.
    """
    return [
        f"{run / stage} is of an earlier version of tempspec, which kept no digest of what it measured: whether that "
        "is the draft in fit/draft is not known"
        for stage in finished
        if own_draft(left_by_fit(run / "fit"))
        and not measured_draft(run / stage)
        and _names_own_draft(run, configs[stage])
    ]


def rows_of_another_draft(run: Path) -> str:
    """A line where predict has decoded with another draft than the one that fit has left; empty where it has not.

    Args:
        run: the run's folder.
    """
    if not any((run / "predict" / f"predictions.{kind}").exists() for kind in ("parquet", "parts")):
        return ""
    try:
        held = json.loads((run / "predict" / "predictions.origin.json").read_text(encoding="utf-8")).get("draft")
    except (OSError, ValueError, AttributeError):
        return ""
    if held in (None, own_draft(left_by_fit(run / "fit"))):
        return ""
    return (
        f"{run / 'predict'} holds rows of another draft than this one, and they stay: rename that folder before you "
        "decode with this one, or give predict another --run"
    )


def _names_own_draft(run: Path, config: Mapping[str, Any]) -> bool:
    """Whether a stage's configuration names the draft, or a checkpoint, of its own run's fit, wherever that is now."""
    places = [(folder / "fit").resolve() for folder in (run, Path(str(config.get("run") or run)).expanduser())]
    return any(above in places for above in _above_what_is_measured(config))


def _above_what_is_measured(config: Mapping[str, Any]) -> list[Path]:
    """The folders above the draft, and the checkpoint, that a configuration names."""
    paths = [(config.get("model") or {}).get("draft"), config.get("ckpt_path")]
    return [above for path in paths if path for above in Path(path).expanduser().resolve().parents]


def _was_replaced(run: Path, stage: str, config: Mapping[str, Any]) -> bool:
    """Whether a stage measured what fit had left in this run, and fit has left something else since."""
    measured = measured_draft(run / stage)
    if not measured.get("draft") or not _names_own_draft(run, config):
        return False
    if not measured.get("checkpoint"):
        return own_draft(left_by_fit(run / "fit")) not in (None, measured["draft"])
    file = run / "fit" / "checkpoints" / Path(str(config.get("ckpt_path"))).name
    return file.is_file() and file_digest(file) != measured["checkpoint"]


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _record(draft: Path) -> Path:
    """`fit/draft.yaml` for `fit/draft`: not inside, where a draft that is shared would tell of somebody's folders."""
    return draft.with_name(f"{draft.name}.yaml")


def _mapping(file: Path) -> Mapping[str, Any]:
    """A YAML file's mapping; empty where there is none.

    Raises:
        UserError: it is broken.
    """
    try:
        held = read_own_yaml(file.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: expected YAML, got a broken file; run the stage again") from error
    return held if isinstance(held, Mapping) else {}
