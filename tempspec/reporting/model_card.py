"""The model card of a draft: what it was distilled from, at which temperatures, and what was measured (floor 5).

Everything comes from the files of the run; what was not measured with this very draft, by the digest of its weights, is
said to be missing: not the figures of the draft that was in this folder before, nor those of a checkpoint.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from tempspec.errors import UserError
from tempspec.files import write_atomically
from tempspec.models.hub import split_name
from tempspec.models.quantised import quantised
from tempspec.reporting.measured import fit_config, left_by_fit, measured_draft, own_draft

__all__ = ["draft_card", "write_draft_card", "write_exported_card"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COLUMNS = {
    "analytic_acceptance": "analytic",
    "acceptance_rate": "acceptance rate",
    "block_efficiency": "block efficiency",
}


def write_draft_card(run: Path) -> Path | None:
    """Write `README.md` into the folder of the draft that fit has left; the file, or None where there is no draft."""
    folder = left_by_fit(run / "fit")
    if not (folder / "config.json").is_file():
        return None
    file = folder / "README.md"
    write_atomically(file, str(draft_card(run)).encode())
    return file


def draft_card(run: Path) -> ModelCard:
    """The card of the draft that a run's fit left.

    Args:
        run: a folder with `fit/draft` or `fit/head`, and where they exist `validate/` and `predict/`.

    Raises:
        UserError: there is no configuration of a fit.
    """
    config = fit_config(left_by_fit(run / "fit"))
    if not config:
        raise UserError(
            f"{run / 'fit' / 'config.yaml'}: expected the configuration of a finished fit, got none; run fit"
        )
    return _card(config, [*_known(config), "## Measured\n", *_measured(run)])


def write_exported_card(draft: Path, output: Path, what: str, otherwise: Mapping[str, Any]) -> None:
    """Write `README.md` into a folder that `tempspec export` has written.

    Args:
        draft: the folder that was exported; what made it is read beside it.
        output: the folder.
        what: how the one came from the other, a sentence.
        otherwise: the `model` part of a configuration, for a draft of which nothing else is known.
    """
    found = fit_config(draft)
    found = found if "target" in (found.get("model") or {}) and "data" in found else {}
    known = _known(found) if found else ["How it was trained is not known.\n"]
    body = [f"{what} It was not measured as it is here.\n", *known]
    write_atomically(output / "README.md", str(_card(found or {"model": otherwise, "data": {}}, body)).encode())


def _card(config: Mapping[str, Any], body: Sequence[str]) -> ModelCard:
    """A card with this body between what the draft is for and how it is used."""
    model, data = config["model"], config["data"]
    parts = [
        f"---\n{_metadata(model, data).to_yaml()}\n---\n",
        f"# {'A head' if model.get('head') else 'A draft'} for {_name(model['target'])}\n",
        f"Proposes tokens in speculative decoding for the target `{_name(model['target'])}`; it is not meant to be "
        "used alone. Distilled with tempspec.\n",
        *body,
        "## Use\n",
        f"{_use(model)}\n",
    ]
    return ModelCard("\n".join(parts), ignore_metadata_errors=False)


def _known(config: Mapping[str, Any]) -> list[str]:
    """How the draft was trained."""
    lines = (f"- {name}: {value}" for name, value in _training(config["model"], config["data"]))
    return ["## Training\n", "\n".join(lines) + "\n"]


_USE = """```python
target = AutoModelForCausalLM.from_pretrained({arguments})
draft = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
target.generate(**inputs, assistant_model=draft)
```

```
vllm serve {target} --speculative-config '{{"method": "draft_model", "model": "path/to/this/folder",
  "num_speculative_tokens": 4, "draft_sample_method": "probabilistic"}}'

python -m sglang.launch_server --model-path {target} --speculative-algorithm STANDALONE \\
  --speculative-draft-model-path path/to/this/folder --speculative-num-steps 4 --speculative-eagle-topk 1 \\
  --speculative-num-draft-tokens 5
```

Without `probabilistic` vLLM drafts the most likely token at every temperature. The distribution that
was trained for temperatures above 0 is then not used. SGLang always does so with a draft model, as it refuses
rejection sampling for STANDALONE.{folded}"""

_FOLDED = " A draft that is conditioned on its temperature is folded first: `tempspec export`."


_SERVE = """```
vllm serve {target} --speculative-config '{{"method": "eagle3", "model": "path/to/this/folder",
  "num_speculative_tokens": 4, "draft_sample_method": "probabilistic"}}'

python -m sglang.launch_server --model-path {target} --speculative-algorithm EAGLE3 \\
  --speculative-draft-model-path path/to/this/folder --speculative-num-steps 4 --speculative-eagle-topk 1 \\
  --speculative-num-draft-tokens 5 --speculative-use-rejection-sampling
```

Without `probabilistic`, or `--speculative-use-rejection-sampling`, an engine drafts the most likely token at every
temperature: the distribution that was trained for temperatures above 0 is then not used. {refused}"""

_REFUSED = {
    False: "Both engines sample from all tokens.",
    True: "SGLang refuses to sample from a draft vocabulary: serve this head with vLLM at temperatures above 0.",
}
"""Whether the head has a draft vocabulary, and what that means for serving."""


def _use(model: Mapping[str, Any]) -> str:
    """How the draft is used: by transformers, or, as a head, by serving engines."""
    folded = _FOLDED if model.get("conditioning_rank") else ""
    if not model.get("head"):
        return _USE.format(arguments=_arguments(model["target"]), target=_name(model["target"]), folded=folded)
    return _SERVE.format(
        target=_name(model["target"]), refused=_REFUSED[bool(_head_options(model)["draft_vocabulary"])] + folded
    )


def _head_options(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of the head that was asked for."""
    head = model["head"]
    given = head.get("init_args") or {} if isinstance(head, Mapping) else {}
    return {"draft_vocabulary": None, **given}


def _metadata(model: Mapping[str, Any], data: Mapping[str, Any]) -> ModelCardData:
    """The block that the hub reads; names of local folders are no hub names and stay out."""
    datasets = [path for path in _paths(data) if _on_hub(path)]
    kind = "eagle3" if model.get("head") else "draft-model"
    return ModelCardData(
        base_model=model["target"] if _on_hub(model["target"]) else None,
        datasets=datasets or None,
        library_name=None if model.get("head") else "transformers",
        pipeline_tag="text-generation",
        tags=["speculative-decoding", kind, "knowledge-distillation", "tempspec"],
    )


def _training(model: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    how = _quantised(model)
    yield "target", f"`{_name(model['target'])}`{f', {how}' if how else ''}"
    start = model.get("draft")
    if model.get("head"):
        options = {"steps": 3, "decay": 0.9} | (model.get("head_training") or {})
        yield "head", _plugin(model["head"], "")
        yield "unrolled steps", f"{options['steps']}, each counting {options['decay']} of the one before"
    made = "new" if model.get("head") else f"{model.get('draft_layers')} layers of the target"
    yield "draft before training", f"`{_name(start)}`" if start else made
    yield "divergence", _plugin(model.get("divergence"), "ForwardKL")
    yield "loss temperature", _plugin(model.get("temperature"), "1")
    if (model.get("label_weight") or 0) > 0:
        yield "share of the text's own next token in the loss", f"{model['label_weight']:g}"
    yield "data", ", ".join(f"`{_name(path)}`" for path in _paths(data)) or "none named"


def _quantised(model: Mapping[str, Any]) -> str | None:
    """How the target's weights are quantised, in words."""
    loading = model.get("loading") or {}
    return quantised(model["target"], loading.get("quantization"), loading.get("target_revision"))


def _measured(run: Path) -> Iterator[str]:
    """One table per stage, or a sentence that says what is missing."""
    for stage, what in (("validate", "Without decoding"), ("predict", "By speculative decoding")):
        rows = _summary(run, stage)
        if not rows:
            yield f"{what} (`tempspec {stage}`): not measured with this draft.\n"
            continue
        names = [name for name in _COLUMNS if any(row["metric"] == name for row in rows)]
        yield f"{what} (`tempspec {stage}`), with 95% intervals over prompts:\n"
        yield "| set | verifier | target T | draft T | prompts | " + " | ".join(_COLUMNS[name] for name in names) + " |"
        yield "|---" * (5 + len(names)) + "|"
        yield from _lines(rows, names)
        yield ""


def _lines(rows: list[dict[str, str]], names: list[str]) -> Iterator[str]:
    cells: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        place = tuple(row[name] for name in ("prompt_set", "verifier", "target_temperature", "draft_temperature"))
        cells.setdefault(place, {})[row["metric"]] = row
    for place, found in cells.items():
        shown = [_estimate(found[name]) if name in found else "" for name in names]
        if any(shown):
            prompts = max(int(found[name]["prompts"]) for name in names if name in found)
            yield f"| {' | '.join(place)} | {prompts} | {' | '.join(shown)} |"


def _estimate(row: Mapping[str, str]) -> str:
    if not row["value"]:
        return ""
    ends = f" [{float(row['low']):.3f}, {float(row['high']):.3f}]" if row["low"] else ""
    return f"{float(row['value']):.3f}{ends}"


def _summary(run: Path, stage: str) -> list[dict[str, str]]:
    """The rows of a stage's summary that measured this draft: all categories together, plain decoding left out."""
    file = run / stage / "summary.csv"
    measured = measured_draft(run / stage)
    if not file.is_file() or measured != {"draft": own_draft(left_by_fit(run / "fit")), "checkpoint": ""}:
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [row for row in rows if row["verifier"] != "autoregressive" and not row.get("category")]


def _paths(data: Mapping[str, Any]) -> list[str]:
    train = data.get("train") or []
    listed = train if isinstance(train, list) else [train]
    return [source if isinstance(source, str) else source["path"] for source in listed]


def _on_hub(path: str) -> bool:
    return bool(_HUB_NAME.fullmatch(path)) and not Path(path).exists()


def _name(path: str) -> str:
    """A hub name as it is, a path without the folders of somebody's machine."""
    return path if _on_hub(split_name(path)[0]) else Path(path).name


def _arguments(target: str) -> str:
    """What `from_pretrained` is called with."""
    hub, file = split_name(target)
    if file is None and target.endswith(".gguf"):
        hub, file = "path/to/its/folder", Path(target).name
    return f'"{_name(target)}"' if file is None else f'"{hub}", gguf_file="{file}"'


def _plugin(value: Any, default: str) -> str:
    """A plugin as its configuration names it."""
    if not isinstance(value, Mapping):
        return str(default if value is None else value)
    options = ", ".join(f"{name}: {option}" for name, option in (value.get("init_args") or {}).items())
    return f"{value['class_path'].rpartition('.')[2]}" + (f" ({options})" if options else "")
