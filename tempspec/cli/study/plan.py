"""What a study is going to do, and about how long it takes (floor 6)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tempspec.cli.steps import finished_seconds
from tempspec.cli.study.config import Study
from tempspec.cli.study.drafts import Run
from tempspec.cli.study.jobs import Jobs
from tempspec.cli.study.pace import guessed, parameters
from tempspec.data.prompts import PromptSource
from tempspec.data.skipped import Skipped
from tempspec.data.sources import read
from tempspec.decoding.sweep import Sweep
from tempspec.modules.distillation import DistillationModule

__all__ = ["STAGES", "Plan"]

STAGES = ("fit", "validate", "predict")
"""Of a run, in order."""

_PREPARATION, _SHARED = "quickstart", "shared"

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
        sizes: parameters of the target and of the draft, as far as they are known.
    """

    cells: Mapping[str, int]
    work: Work
    took: Work
    megabytes: float
    sizes: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, study: Study, jobs: Jobs, mine: list[Run], until: str = "predict") -> "Plan":
        """Check every run's configuration and add up.

        Args:
            study: the study.
            jobs: of it.
            mine: the runs that are run.
            until: the last stage of these.

        Raises:
            UserError: a configuration is wrong.
        """
        # The runs of one draft differ in the seed alone.
        first = {run.draft: run for run in reversed(study.runs)}
        checked = {draft: jobs.module(run.name, study.run_config(run)) for draft, run in first.items()}
        modules = {run.name: checked[run.draft] for run in study.runs}
        for purpose in study.purposes:
            jobs.module(purpose, study.texts_config(purpose))
        work = {
            _PREPARATION: {step.name: 1.0 for step in jobs.preparation()},
            _SHARED: _texts(study, modules[study.runs[0].name]) | _caches(study, mine),
            **{run.name: _until(until, _tokens(study, run, modules[run.name])) for run in mine},
        }
        tokens = sum(sum(stages.values()) for stages in work.values())
        weights = sum(run.candidate.fit for run in mine) * 4 * _megabytes(study)
        cells = {run.name: _cells(study, modules[run.name]) for run in study.runs}
        model = study.experiment["model"]
        sizes = parameters(model.get("target")), parameters(model.get("draft"))
        return cls(cells, work, {}, weights + tokens * 3e-5, sizes).now(study, jobs, mine)

    def now(self, study: Study, jobs: Jobs, mine: list[Run]) -> "Plan":
        """The same plan with what is finished by now."""
        steps = {
            _PREPARATION: jobs.preparation(),
            _SHARED: jobs.shared(),
            **{run.name: jobs.of_run(run) for run in mine},
        }
        return replace(self, took={name: finished_seconds(steps[name], _markers(study, name)) for name in steps})

    def queue(self, mine: list[Run]) -> list[Run]:
        """The runs in the order in which they are run: one seed of all drafts before the next, the short ones first.

        Whenever it ends, what is finished compares as many drafts as possible.
        """
        seeds = list(dict.fromkeys(run.seed for run in mine))
        return sorted(mine, key=lambda run: (seeds.index(run.seed), self._seconds(run.name)))

    @property
    def left(self) -> str:
        """How long the rest takes, and what that is known from; empty where nothing is left."""
        rest = [(name, stage) for name in self.work for stage in self._rest(name)]
        if not rest:
            return ""
        seconds = sum(map(self._seconds, self.work))
        open_ended = any(stage == "fit" and not self.work[name][stage] for name, stage in rest)
        more = ", and the fits, which end by epochs" if open_ended else ""
        guesses = [stage for stage in dict.fromkeys(_kind(stage) for _, stage in rest) if self._measured(stage) is None]
        if not guesses:
            return f"left: about {seconds / 60:.0f} min{more}, at the pace of what is finished"
        basis = "all of it" if len(guesses) == len({_kind(stage) for _, stage in rest}) else ", ".join(guesses)
        return f"left: roughly {seconds / 60:.0f} min{more} ({basis} guessed from the models' sizes, on one free core)"

    def __str__(self) -> str:
        lines = [f"  {name:24} {count:4} cells{self._mark(name)}" for name, count in self.cells.items()]
        total = f"{sum(self.cells.values())} cells in {len(self.cells)} runs"
        disk = f"on disk: about {self.megabytes:.0f} MB"
        return "\n".join([f"plan: {total}", *lines, disk, self.left]).rstrip()

    def _mark(self, name: str) -> str:
        if "predict" in self.took.get(name, {}):
            return "  finished"
        return f"  about {self._seconds(name) / 60:.0f} min" if self._seconds(name) >= 60 else ""

    def _rest(self, name: str) -> list[str]:
        """The steps of a run, or of the shared texts, that are not finished."""
        return [stage for stage in self.work.get(name, {}) if stage not in self.took[name]]

    def _seconds(self, name: str) -> float:
        """How long these take."""
        return sum(self._rate(_kind(stage)) * self.work[name][stage] for stage in self._rest(name))

    def _rate(self, kind: str) -> float:
        measured = self._measured(kind)
        return guessed(kind, *self.sizes) if measured is None else measured

    def _measured(self, kind: str) -> float | None:
        """Seconds per token of the finished steps of a kind; None where there are none."""
        done = [
            (self.took[name][stage], tokens)
            for name, stages in self.work.items()
            for stage, tokens in stages.items()
            if _kind(stage) == kind and tokens and stage in self.took[name]
        ]
        return sum(seconds for seconds, _ in done) / sum(tokens for _, tokens in done) if done else None


def _kind(stage: str) -> str:
    """Which steps take as long per token as one of this name: those of all caches are of one kind."""
    return "cache" if "-" in stage and stage.partition("-")[0] in ("teacher", "features") else stage


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
    return {name: tokens * len(study.temperatures_of(name)) * _count(study.sources(name)) for name in study.purposes}


def _caches(study: Study, mine: list[Run]) -> dict[str, float]:
    """Tokens that the target reads for each cache."""
    found = {}
    for run in mine:
        if (config := study.cache_config(run)) is not None:
            data, texts = config["data"], run.candidate.generation_temperatures
            named = run.candidate.training_prompts
            prompts = {name: one for name, one in study.sources("training").items() if not named or name in named}
            rows = _count(prompts) * len(texts) if texts else _rows(data.get("train") or [])
            found[Path(config["run"]).name] = float(rows * data.get("max_length", 256))
    return found


def _rows(train: Any) -> int:
    """Rows of the files of a training text that are here."""
    sources = train if isinstance(train, list) else [train]
    return _count({str(number): {"limit": None} | _named(source) for number, source in enumerate(sources)})


def _named(source: Any) -> dict[str, Any]:
    return {"path": source} if isinstance(source, str) else dict(source)


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
        "predict": per_prompt * (_count(config["data"]["prompts"]) * rules * sweep.samples + timed * (rules + 1)),
    }
    if run.candidate.measured:
        found["validate"] = prompts * (1 + len(study.sampled_temperatures)) * 2.0 * sweep.max_new_tokens
    if run.candidate.fit:  # 0: it ends by epochs, after nobody knows how many steps
        batches = max(trainer.get("max_steps", 0), 0) * trainer.get("accumulate_grad_batches", 1)
        rows = batches * data.get("batch_size", 8)
        found["fit"] = rows * data.get("max_length", 256)
    return found


def _until(last: str, tokens: dict[str, float]) -> dict[str, float]:
    """The stages up to the last one."""
    return {stage: count for stage, count in tokens.items() if STAGES.index(stage) <= STAGES.index(last)}


def _megabytes(study: Study) -> float:
    """The draft's weights; 2 MB where they are not here yet."""
    folder = Path(str(study.experiment["model"].get("draft")))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6 or 2.0
