"""The steps of a study: shared texts first, then each run's fit, validate and predict, in one process (floor 6)."""

import shlex
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import yaml  # type: ignore[import-untyped]

from tempspec.cli import lightning
from tempspec.cli.quickstart import steps as quickstart_steps
from tempspec.cli.steps import Step
from tempspec.cli.study.config import Config, Purpose, Run, Study
from tempspec.cli.study.fixed_texts import continuations
from tempspec.data.module import TextDataModule
from tempspec.errors import UserError
from tempspec.files import write_atomically
from tempspec.modules.distillation import DistillationModule
from tempspec.reporting.records import write_parquet

__all__ = ["Jobs"]

_MEASURING = ("sweep", "verifiers", "drafter", "length", "validation_temperatures")
"""Options of the model that a fit does not depend on."""


class Jobs:
    """Makes the steps of a study; remembers the last module, whose models the next one takes over.

    Args:
        study: what is run.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._earlier: DistillationModule | None = None

    def preparation(self) -> list[Step]:
        """The quickstart's corpus, target and draft, up to the last that is named: each needs those before it."""
        if self.study.quickstart is None:
            return []
        steps = [step for step in quickstart_steps(Path(self.study.quickstart)) if step.name in _PREPARATION]
        configs = [*map(self.study.run_config, self.study.runs), *map(self.study.texts_config, self.study.purposes)]
        named = "".join(map(_text, configs))
        needed = [number for number, step in enumerate(steps, 1) if any(f"{path}/" in named for path in step.leaves)]
        return steps[: max(needed, default=0)]

    def shared(self) -> list[Step]:
        """The texts that all runs share."""
        return [self._texts(name) for name in self.study.purposes]

    def of_run(self, run: Run) -> list[Step]:
        """A run's own steps."""
        config = self.study.run_config(run)
        path = self._write(run.name, config)
        folder = Path(config["run"])
        texts = {name: _text(self.study.texts_config(name)) for name in self.study.purposes_of(run)}
        line: tuple[str, ...] = ("--config", str(path))
        steps = []
        if run.candidate.fit:
            fit = ("fit", *line, "--trainer.limit_val_batches", "0")
            depends = (texts.get("training", ""), _text(_without_measuring(config)))
            leaves = (folder / "fit",)
            steps.append(
                Step("fit", f"{run.name}: distil", _shown(fit), lambda: self._fit(fit, folder), leaves, depends)
            )
        else:
            line += ("--before",)  # whatever a fit of another day may have left in the folder
        for command, title in (("validate", "acceptance at every temperature"), ("predict", "decode")):
            steps.append(
                self._stage(f"{run.name}: {title}", (command, *line), folder, (*texts.values(), _text(config)))
            )
        return steps

    def module(self, name: str, config: Config) -> DistillationModule:
        """The module of a configuration as it would be built, with all its options checked and no model loaded.

        Raises:
            UserError: a wrong option.
        """
        arguments = ["predict", "--config", str(self._write(name, config)), "--before"]
        return cast(DistillationModule, lightning.run(arguments, command_line=_Rehearsal))

    def _stage(self, title: str, line: tuple[str, ...], folder: Path, depends: tuple[str, ...]) -> Step:
        return Step(line[0], title, _shown(line), lambda: self._call(line), (folder / line[0],), depends)

    def _call(self, line: tuple[str, ...]) -> None:
        self._earlier = cast(DistillationModule, lightning.run(list(line), self._earlier))

    def _fit(self, line: tuple[str, ...], folder: Path) -> None:
        """Fit, from the last checkpoint where there is one."""
        last = folder / "fit" / "checkpoints" / "last.ckpt"
        self._call((*line, *(("--ckpt_path", "last") if last.exists() else ())))

    def _texts(self, name: Purpose) -> Step:
        config = self.study.texts_config(name)
        line = ("generate", "--config", str(self._write(name, config)))
        title = f"the target's own texts to {_USES[name]} on"

        def execute() -> None:
            self._call(line)
            self._split(name)

        return Step(name, title, _shown(line), execute, (Path(config["run"]),), (_text(config),))

    def _split(self, name: Purpose) -> None:
        """A file for each temperature, and for each prompt set of what is measured on; and the fixed texts."""
        assert self._earlier is not None
        wanted = set(self._earlier.runner.order)  # the file keeps rows of what the study asked for on another day
        held = pq.read_table(self.study.texts / name / "generate" / "generated.parquet").to_pylist()
        rows = [row for row in held if row["key"] in wanted]
        files: dict[str, list[Any]] = {}
        for row in rows:
            part = f"{row['prompt_set']}-" if name == "sampled" else ""
            files.setdefault(f"{name}-{part}{row['generation_temperature']:g}", []).append(row)
        if name == "sampled" and self.study.fixed == "continuation":
            files |= self._fixed()
        if name == "fitting":
            self._keep_apart(rows)
        for stem, members in files.items():
            write_parquet(self.study.texts / f"{stem}.parquet", members)

    def _keep_apart(self, fitting: list[Any]) -> None:
        """Refuse to fit on what is measured.

        Raises:
            UserError: a prompt is in both.
        """
        files = self.study.texts.glob("sampled-*.parquet")
        measured = {tuple(ids) for file in files for ids in pq.read_table(file).column("prompt_ids").to_pylist()}
        shared = {tuple(row["prompt_ids"]) for row in fitting} & measured
        if shared:
            raise UserError(
                f"fitting_prompts: expected prompts that are not measured, got {len(shared)} of data.prompts; "
                "name others, or their draft temperatures would look better than they are"
            )

    def _fixed(self) -> dict[str, list[Any]]:
        assert self._earlier is not None
        data = cast(TextDataModule, self._earlier.trainer.datamodule)  # type: ignore[attr-defined]
        tokens = self._earlier.runner.sweep.max_new_tokens
        return {
            f"fixed-{name}": continuations(data.prompt_sources[name], prompts, data.encoder, tokens)
            for name, prompts in data.prompt_sets().items()
        }

    def _write(self, name: str, config: Config) -> Path:
        path = self.study.folder / "configs" / f"{name}.yaml"
        write_atomically(path, _text(config).encode())
        return path


class _Rehearsal(lightning.CommandLine):
    """Parses and builds module and data, and leaves it at that."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None is needed."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


_USES: dict[Purpose, str] = {"sampled": "measure", "training": "train", "fitting": "fit draft temperatures"}
_PREPARATION = ("corpus", "target-fit", "draft-fit")


def _without_measuring(config: Config) -> Config:
    """What a fit depends on."""
    model = {name: value for name, value in config["model"].items() if name not in _MEASURING}
    data = {name: value for name, value in config["data"].items() if name not in ("prompts", "validation")}
    return config | {"model": model, "data": data}


def _text(config: Config) -> str:
    return str(yaml.safe_dump(config, sort_keys=True, allow_unicode=True))


def _shown(line: tuple[str, ...]) -> str:
    return shlex.join(("tempspec", *line))
