"""`tempspec study`: a declared grid of fits, validations and decodings, which continues when interrupted (floor 6)."""

import re
from collections.abc import Sequence
from pathlib import Path

from tempspec.cli import errors
from tempspec.cli.failures import refused_options
from tempspec.cli.steps import finished_seconds, run_steps
from tempspec.cli.study.config import Study
from tempspec.cli.study.drafts import Run
from tempspec.cli.study.jobs import Jobs
from tempspec.cli.study.plan import STAGES, Plan
from tempspec.errors import UserError
from tempspec.reporting.runs import collect
from tempspec.reporting.sections.agreement import compared, in_words
from tempspec.reporting.study_index import Status, StudyIndex, write_study

__all__ = ["main"]


_HINT = "a study's file names `study`, `experiment` and `drafts`: see configs/studies"


def main(arguments: Sequence[str]) -> int:
    """Show the plan, and run what is missing.

    Args:
        arguments: `study` and its options.

    Raises:
        UserError: a wrong option, or whatever stops a run of the study.
    """
    parser = errors.parser("tempspec study", "A grid of drafts, verifiers and temperatures.", hint=_HINT)
    parser.add_argument("--config", action="config", help="The study's YAML.")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="Show the plan and stop.")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="Leave out what comes after this stage.")
    parser.add_argument("--shard", type=str, default="1/1", help="Run every n-th run, from the i-th on: i/n.")
    parser.add_class_arguments(Study, as_group=False)
    options = parser.parse_args(list(arguments[1:]))
    shard = options.pop("shard")
    dry, until = options.pop("dry_run"), options.pop("until")
    options.pop("config", None)
    try:
        study = Study.of(options.as_dict())
    except (TypeError, ValueError) as error:
        raise refused_options(error) from error
    _execute(study, dry=dry, until=until, shard=shard)
    return 0


def _execute(study: Study, *, dry: bool, until: str, shard: str) -> None:
    jobs = Jobs(study)
    mine = _share(study.runs, shard)
    plan = Plan.of(study, jobs, mine, until)
    print(plan)
    if dry:
        return
    markers = study.folder / "steps"
    if study.quickstart is not None:
        run_steps(jobs.preparation(), Path(study.quickstart) / "steps")
    run_steps(jobs.shared(), markers / "shared")
    for run in plan.queue(mine):
        run_steps([step for step in jobs.of_run(run) if _before(step.name, until)], markers / run.name)
        _write_index(study, jobs, plan)
        plan = plan.now(study, jobs, mine)
        done = "finished" if until == STAGES[-1] else f"finished up to {until}"
        print(f"\n{run.name} is {done}", plan.left, sep="\n" if plan.left else "", flush=True)
    index = _write_index(study, jobs, plan)
    if until == STAGES[-1] and (said := in_words(compared(collect([study.folder])))):
        print(f"\n{said}")
    print(f"\nstudy: {index}")


def _before(stage: str, last: str) -> bool:
    """Whether a stage is the last one or comes before it."""
    return STAGES.index(stage) <= STAGES.index(last)


def _share(runs: list[Run], shard: str) -> list[Run]:
    """The runs of one shard. A run's cells stay together: its speed-ups are fair on one machine alone.

    Raises:
        UserError: it is not written i/n.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard expected i/n with i from 1 to n, got {shard!r}; for example --shard 1/4")
    return runs[int(found[1]) - 1 :: int(found[2])]


def _write_index(study: Study, jobs: Jobs, plan: Plan) -> Path:
    """Write study.json as far as the study is."""
    done = sum(
        plan.cells[run.name]
        for run in study.runs
        if "predict" in finished_seconds(jobs.of_run(run), study.folder / "steps" / run.name)
    )
    index = StudyIndex(
        name=study.folder.name,
        kind=study.kind,
        drafts=study.draft_index(),
        prompt_sets=study.domains(),
        target_temperatures=study.target_temperatures,
        draft_temperatures=study.draft_temperatures,
        reference_temperature=study.reference_temperature,
        prefixes=study.prefixes,
        status=Status(done, sum(plan.cells.values())),
    )
    return write_study(study.folder, index)
