"""What a study is going to do, and about how long it takes (floor 6)."""

from dataclasses import dataclass
from pathlib import Path

from tempspec.cli.steps import finished_seconds
from tempspec.cli.study.config import Run, Study
from tempspec.cli.study.jobs import Jobs
from tempspec.modules.distillation import DistillationModule

__all__ = ["Plan"]

_SECONDS = {"fit": 1.6e-4, "validate": 6e-4, "predict": 2e-3}
"""Seconds a token on one core for the quickstart's pair: a first guess, replaced by what finished steps took."""


@dataclass(frozen=True)
class Plan:
    """The plan.

    Attributes:
        cells: of each run: verifiers x prompt sets x pairs of temperatures.
        finished: runs that are done.
        seconds: what is left, estimated.
        megabytes: what it leaves on disk, estimated.
    """

    cells: dict[str, int]
    finished: list[str]
    seconds: float
    megabytes: float

    @classmethod
    def of(cls, study: Study, jobs: Jobs, mine: list[Run]) -> "Plan":
        """Check every run's configuration and add up.

        Raises:
            UserError: a configuration is wrong.
        """
        modules = {run.name: jobs.module(run) for run in study.runs}
        tokens = {run.name: _tokens(study, run, modules[run.name]) for run in mine}
        took = {run.name: finished_seconds(jobs.of_run(run), study.folder / "steps" / run.name) for run in mine}
        rate = {stage: _rate(stage, tokens, took) for stage in _SECONDS}
        left = [(run, stage) for run in tokens for stage in tokens[run] if stage not in took[run]]
        weights = sum(run.candidate.fit for run in mine) * 4 * _megabytes(study)
        return cls(
            {run.name: _cells(study, modules[run.name]) for run in study.runs},
            [name for name in took if "predict" in took[name]],
            sum(rate[stage] * tokens[run][stage] for run, stage in left),
            weights + sum(sum(stages.values()) for stages in tokens.values()) * 3e-5,
        )

    def __str__(self) -> str:
        lines = [f"  {name:24} {count:4} cells{self._mark(name)}" for name, count in self.cells.items()]
        total = f"{sum(self.cells.values())} cells in {len(self.cells)} runs"
        return "\n".join(
            [f"plan: {total}", *lines, f"left: about {self.seconds / 60:.0f} min, {self.megabytes:.0f} MB on disk"]
        )

    def _mark(self, name: str) -> str:
        return "  finished" if name in self.finished else ""


def _cells(study: Study, module: DistillationModule) -> int:
    runner = module.runner
    pairs = runner.sweep.temperatures()
    allowed = sum(t == 0 or not rule.greedy_only for rule in runner.verifiers.values() for t, _ in pairs)
    return allowed * len(study.prompts)


def _tokens(study: Study, run: Run, module: DistillationModule) -> dict[str, float]:
    """Tokens that each stage works on."""
    sweep = module.runner.sweep
    config = study.run_config(run)
    prompts = sum(source.get("limit") or 32 for source in study.prompts.values())
    timed = min(sweep.timing_prompts * len(study.prompts), prompts)
    per_prompt = len(sweep.temperatures()) * sweep.max_new_tokens
    rules = len(module.runner.verifiers)
    data, trainer = config["data"], config.get("trainer") or {}
    found: dict[str, float] = {
        "validate": prompts * (1 + len(study.sampled_temperatures)) * 2.0 * sweep.max_new_tokens,
        "predict": per_prompt * (prompts * rules * sweep.samples + timed * (rules + 1)),
    }
    if run.candidate.fit:
        rows = max(trainer.get("max_steps", 0), 0) * data.get("batch_size", 8)
        found["fit"] = rows * data.get("max_length", 256)
    return found


def _rate(stage: str, tokens: dict[str, dict[str, float]], took: dict[str, dict[str, float]]) -> float:
    done = [name for name in took if stage in took[name] and tokens[name].get(stage)]
    measured = sum(took[name][stage] for name in done)
    return measured / sum(tokens[name][stage] for name in done) if done else _SECONDS[stage]


def _megabytes(study: Study) -> float:
    """The draft's weights; 2 MB where they are not here yet."""
    folder = Path(str(study.experiment["model"].get("draft")))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6 or 2.0
