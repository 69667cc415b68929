"""What a study is going to do, and about how long it takes (floor 6)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tempspec.cli.steps import finished_seconds
from tempspec.cli.study.config import Run, Study
from tempspec.cli.study.jobs import Jobs
from tempspec.data.prompts import PromptSource
from tempspec.data.skipped import Skipped
from tempspec.data.sources import read
from tempspec.decoding.sweep import Sweep
from tempspec.modules.distillation import DistillationModule

__all__ = ["Plan"]

_PREPARATION, _SHARED = "quickstart", "shared"

_SECONDS = {
    "corpus": 5.0,
    "target-fit": 75.0,
    "draft-fit": 20.0,
    "sampled": 6e-4,
    "training": 6e-4,
    "fitting": 6e-4,
    "fit": 1.6e-4,
    "validate": 6e-4,
    "predict": 2e-3,
}
"""Seconds of each step of the preparation, and seconds per token of the others, on one free core for the quickstart's
pair: a guess, which gives way to what steps of this study took."""

Work = Mapping[str, Mapping[str, float]]
"""Steps of each run, of the shared texts and of the preparation: how much there is to do, or how long it took."""


@dataclass(frozen=True)
class Plan:
    """The plan.

    Attributes:
        cells: of each run: verifiers x prompt sets x pairs of temperatures.
        work: what there is to do: tokens, or for the preparation 1 a step.
        took: the seconds of what is finished.
        megabytes: what all of it leaves on disk, estimated.
    """

    cells: Mapping[str, int]
    work: Work
    took: Work
    megabytes: float

    @classmethod
    def of(cls, study: Study, jobs: Jobs, mine: list[Run]) -> "Plan":
        """Check every run's configuration and add up.

        Raises:
            UserError: a configuration is wrong.
        """
        modules = {run.name: jobs.module(run.name, study.run_config(run)) for run in study.runs}
        for purpose in study.purposes:
            jobs.module(purpose, study.texts_config(purpose))
        work = {
            _PREPARATION: {step.name: 1.0 for step in jobs.preparation()},
            _SHARED: _texts(study, modules[study.runs[0].name]),
            **{run.name: _tokens(study, run, modules[run.name]) for run in mine},
        }
        tokens = sum(sum(stages.values()) for stages in work.values())
        weights = sum(run.candidate.fit for run in mine) * 4 * _megabytes(study)
        cells = {run.name: _cells(study, modules[run.name]) for run in study.runs}
        return cls(cells, work, {}, weights + tokens * 3e-5).now(study, jobs, mine)

    def now(self, study: Study, jobs: Jobs, mine: list[Run]) -> "Plan":
        """The same plan with what is finished by now."""
        steps = {
            _PREPARATION: jobs.preparation(),
            _SHARED: jobs.shared(),
            **{run.name: jobs.of_run(run) for run in mine},
        }
        return replace(self, took={name: finished_seconds(steps[name], _markers(study, name)) for name in steps})

    @property
    def left(self) -> str:
        """How long the rest takes, and what that is known from; empty where nothing is left."""
        rest = [(name, stage) for name in self.work for stage in self.work[name] if stage not in self.took[name]]
        if not rest:
            return ""
        seconds = sum(self._rate(stage) * self.work[name][stage] for name, stage in rest)
        open_ended = any(stage == "fit" and not self.work[name][stage] for name, stage in rest)
        more = ", and the fits, which end by epochs" if open_ended else ""
        guessed = [stage for stage in dict.fromkeys(stage for _, stage in rest) if self._measured(stage) is None]
        if not guessed:
            return f"left: about {seconds / 60:.0f} min{more}, at the pace of what is finished"
        basis = "all of it" if len(guessed) == len({stage for _, stage in rest}) else ", ".join(guessed)
        return (
            f"left: roughly {seconds / 60:.0f} min{more} ({basis} guessed from the quickstart's pair on one free core)"
        )

    def __str__(self) -> str:
        lines = [f"  {name:24} {count:4} cells{self._mark(name)}" for name, count in self.cells.items()]
        total = f"{sum(self.cells.values())} cells in {len(self.cells)} runs"
        disk = f"on disk: about {self.megabytes:.0f} MB"
        return "\n".join([f"plan: {total}", *lines, disk, self.left]).rstrip()

    def _mark(self, name: str) -> str:
        return "  finished" if "predict" in self.took.get(name, {}) else ""

    def _rate(self, stage: str) -> float:
        measured = self._measured(stage)
        return _SECONDS[stage] if measured is None else measured

    def _measured(self, stage: str) -> float | None:
        """Seconds per token of the stages of this name that are finished; None where there are none."""
        done = [name for name in self.work if stage in self.took[name] and self.work[name].get(stage)]
        seconds = sum(self.took[name][stage] for name in done)
        return seconds / sum(self.work[name][stage] for name in done) if done else None


def _markers(study: Study, name: str) -> Path:
    return Path(str(study.quickstart)) / "steps" if name == _PREPARATION else study.folder / "steps" / name


def _cells(study: Study, module: DistillationModule) -> int:
    runner = module.runner
    pairs = runner.sweep.temperatures(_fitted(runner.sweep))
    allowed = sum(t == 0 or not rule.greedy_only for rule in runner.verifiers.values() for t, _ in pairs)
    return allowed * len(study.prompts)


def _texts(study: Study, module: DistillationModule) -> dict[str, float]:
    """Tokens that the target writes for each purpose, at most."""
    tokens = float(module.runner.sweep.max_new_tokens)
    sources = {name: study.texts_config(name)["data"]["prompts"] for name in study.purposes}
    return {name: tokens * len(study.temperatures_of(name)) * _count(sources[name]) for name in sources}


def _count(prompts: Mapping[str, Any]) -> int:
    """How many prompts sets have at most; of one that is not there yet and has no limit, as many as others have."""
    found = 0
    for given in prompts.values():
        source = PromptSource(given) if isinstance(given, str) else PromptSource(**given)
        if source.limit is None and Path(source.path).is_file():
            found += len(read(source, need_response=False, skipped=Skipped()))
        else:
            found += source.limit or 32
    return found


def _fitted(sweep: Sweep) -> dict[float, float]:
    """In place of draft temperatures that are not fitted yet: equal to no other."""
    return dict.fromkeys(sweep.target_temperatures, math.inf)


def _tokens(study: Study, run: Run, module: DistillationModule) -> dict[str, float]:
    """Tokens that each stage works on."""
    sweep = module.runner.sweep
    config = study.run_config(run)
    prompts = _count(study.prompts)
    timed = min(sweep.timing_prompts * len(study.prompts), prompts) * len(sweep.timing_slots)
    per_prompt = len(sweep.temperatures(_fitted(sweep))) * sweep.max_new_tokens
    rules = len(module.runner.verifiers)
    data, trainer = config["data"], config.get("trainer") or {}
    found: dict[str, float] = {
        "validate": prompts * (1 + len(study.sampled_temperatures)) * 2.0 * sweep.max_new_tokens,
        "predict": per_prompt * (prompts * rules * sweep.samples + timed * (rules + 1)),
    }
    if run.candidate.fit:  # 0: it ends by epochs, after nobody knows how many steps
        batches = max(trainer.get("max_steps", 0), 0) * trainer.get("accumulate_grad_batches", 1)
        rows = batches * data.get("batch_size", 8)
        found["fit"] = rows * data.get("max_length", 256)
    return found


def _megabytes(study: Study) -> float:
    """The draft's weights; 2 MB where they are not here yet."""
    folder = Path(str(study.experiment["model"].get("draft")))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6 or 2.0
