"""The steps of a study: shared texts first, then each run's fit, validate and predict, in one process (floor 6)."""

import shlex
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq

from tempspec.cli import lightning
from tempspec.cli.quickstart import steps as quickstart_steps
from tempspec.cli.steps import Step, remove
from tempspec.cli.study.config import Purpose, Study
from tempspec.cli.study.dependence import Config, for_cache, for_decoding, for_fit, for_texts, in_words
from tempspec.cli.study.drafts import Run
from tempspec.cli.study.fixed_texts import continuations
from tempspec.data.module import TextDataModule
from tempspec.errors import UserError
from tempspec.files import write_atomically
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.predict.row_store import OtherOrigin
from tempspec.reporting.records import write_parquet

__all__ = ["Jobs"]


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
        named = "".join(map(in_words, configs))
        needed = [number for number, step in enumerate(steps, 1) if any(f"{path}/" in named for path in step.leaves)]
        return steps[: max(needed, default=0)]

    def shared(self) -> list[Step]:
        """The texts that all runs share, and what is kept of the target on the training texts."""
        texts = [self._texts(name) for name in self.study.purposes]
        caches = {step.name: step for run in self.study.runs if (step := self._cache(run)) is not None}
        return [*texts, *caches.values()]

    def of_run(self, run: Run) -> list[Step]:
        """A run's own steps."""
        config = self.study.run_config(run)
        path = self._write(run.name, config)
        folder = Path(config["run"])
        texts = {name: self._wanted(name, run) for name in self.study.purposes_of(run)}
        line: tuple[str, ...] = ("--config", str(path))
        steps = []
        if run.candidate.fit:
            fit = ("fit", *line, "--trainer.limit_val_batches", "0")
            depends = (texts.get("training", ""), in_words(for_fit(config)))
            leaves = (folder / "fit",)
            steps.append(
                Step("fit", f"{run.name}: distil", _shown(fit), lambda: self._fit(fit, folder), leaves, depends)
            )
        else:
            line += ("--before",)  # whatever a fit of another day may have left in the folder
        everything = (*texts.values(), in_words(config))
        validate, predict = ("validate", *line), ("predict", *line)
        if run.candidate.measured:
            title = f"{run.name}: acceptance at every temperature"
            steps.append(self._stage(title, validate, folder, asks=everything))
        depends = (texts.get("fitting", ""), in_words(for_decoding(config)))
        steps.append(self._stage(f"{run.name}: decode", predict, folder, depends, everything, keeps=True))
        return steps

    def module(self, name: str, config: Config) -> DistillationModule:
        """The module of a configuration as it would be built, with all its options checked and no model loaded.

        Raises:
            UserError: a wrong option.
        """
        arguments = ["predict", "--config", str(self._write(name, config)), "--before"]
        return cast(DistillationModule, lightning.run(arguments, command_line=_Rehearsal))

    def _stage(
        self,
        title: str,
        line: tuple[str, ...],
        folder: Path,
        depends: tuple[str, ...] = (),
        asks: tuple[str, ...] = (),
        keeps: bool = False,
    ) -> Step:
        leaves = (folder / line[0],)

        def execute() -> None:
            if keeps:
                self._add(line, *leaves)
            else:
                self._call(line)

        return Step(line[0], title, _shown(line), execute, leaves, depends, asks, keeps=keeps)

    def _wanted(self, name: Purpose, run: Run | None = None) -> str:
        """All that the texts of a purpose depend on, and how many there are; of training texts a run's own alone."""
        config = self.study.texts_config(name)
        sweep, prompts = config["model"]["sweep"], config["data"]["prompts"]
        temperatures = sweep["generation_temperatures"]
        if run is not None and name == "training":
            named, temperatures = run.candidate.training_prompts, run.candidate.generation_temperatures
            prompts = {source: one for source, one in prompts.items() if not named or source in named}
        wanted = {"temperatures": temperatures, "samples": sweep["samples"], "prompts": prompts}
        return in_words(for_texts(config) | {"wanted": wanted})

    def _cache(self, run: Run) -> Step | None:
        """The step that keeps what a run learns from of the target."""
        config = self.study.cache_config(run)
        if config is None:
            return None
        kind, folder = self.study.cache, Path(config["run"])
        line = ("generate", "--config", str(self._write(folder.name, config)), f"--cache-{kind}")
        texts = self._wanted("training", run) if run.candidate.generation_temperatures else ""
        depends = (texts, in_words(for_cache(config, kind)))
        title = f"what is kept of the target for all drafts of this text: {kind}"
        return Step(folder.name, title, _shown(line), lambda: self._call(line), (folder,), depends, alone=True)

    def _call(self, line: tuple[str, ...]) -> None:
        self._earlier = cast(DistillationModule, lightning.run(list(line), self._earlier))

    def _add(self, line: tuple[str, ...], folder: Path) -> None:
        """Add to the rows of a folder; begin anew where prompts come in between, as more of each category do."""
        try:
            self._call(line)
        except OtherOrigin as error:
            if not all(entry.startswith("prompts ") for entry in error.changed):
                raise
            print("    prompts come in between those there are: begun anew", flush=True)
            remove([folder])
            self._call(line)

    def _fit(self, line: tuple[str, ...], folder: Path) -> None:
        """Fit, from the last checkpoint where there is one."""
        last = folder / "fit" / "checkpoints" / "last.ckpt"
        self._call((*line, *(("--ckpt_path", "last") if last.exists() else ())))

    def _texts(self, name: Purpose) -> Step:
        config = self.study.texts_config(name)
        line = ("generate", "--config", str(self._write(name, config)))
        title = f"the target's own texts to {_USES[name]} on"

        def execute() -> None:
            self._add(line, Path(config["run"]))
            self._split(name)

        leaves, depends = (Path(config["run"]),), (in_words(for_texts(config)),)
        # The fixed texts are written beside those sampled, and no prompt of these, however many, may be fitted on.
        beside = {"sampled": [str(self.study.fixed)], "fitting": [self._wanted("sampled")]}
        asks = (self._wanted(name), *beside.get(name, []))
        return Step(name, title, _shown(line), execute, leaves, depends, asks, alone=True, keeps=True)

    def _split(self, name: Purpose) -> None:
        """A file for each temperature and each prompt set that has a name; and the fixed texts."""
        assert self._earlier is not None
        wanted = set(self._earlier.runner.order)  # the file keeps rows of what the study asked for on another day
        held = pq.read_table(self.study.texts / name / "generate" / "generated.parquet").to_pylist()
        rows = [row for row in held if row["key"] in wanted]
        files: dict[str, list[Any]] = {}
        for row in rows:
            part = f"{row['prompt_set']}-" if name == "sampled" or row["prompt_set"] != name else ""
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
        names = (f"sampled-{name}-{t:g}" for name in self.study.prompts for t in self.study.sampled_temperatures)
        files = [self.study.texts / f"{stem}.parquet" for stem in names]
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
        write_atomically(path, in_words(config).encode())
        return path


class _Rehearsal(lightning.CommandLine):
    """Parses and builds module and data, and leaves it at that."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None is needed."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


_USES: dict[Purpose, str] = {"sampled": "measure", "training": "train", "fitting": "fit draft temperatures"}
_PREPARATION = ("corpus", "target-fit", "draft-fit")


def _shown(line: tuple[str, ...]) -> str:
    return shlex.join(("tempspec", *line))
