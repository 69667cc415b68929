"""fit, validate, test, predict and generate: one LightningCLI, one YAML (floor 6).

The YAML's `task` chooses the module before the parser is built; its `run` is the folder that every stage writes its own
subfolder of.
"""

import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info

from tempspec.cli.checkpoint import checkpoint_of
from tempspec.cli.failures import as_user_error, refused_options
from tempspec.cli.options import CACHES, Ahead, caches, look_ahead
from tempspec.cli.parser import (
    Parser,
    add_shared_options,
    allow_imports,
    check_options,
    described,
    fill_save_dirs,
    hidden_arguments,
)
from tempspec.cli.progress import Progress
from tempspec.cli.record import RunRecord
from tempspec.cli.screen import print_metrics, quiet
from tempspec.cli.trained import MEASURING, measure_what_was_trained
from tempspec.cli.trainer import GeneratingTrainer
from tempspec.data.module import TextDataModule
from tempspec.errors import UserError
from tempspec.files import let_go, take_hold, write_atomically
from tempspec.modules.callbacks import ChangedOptions, GracefulStop, LastCheckpoint, PretrainedExport, decisive
from tempspec.modules.callbacks.metrics_file import MetricsFile, MetricsPosition
from tempspec.modules.callbacks.serving_defaults import misread_note, sizes_note
from tempspec.modules.fit.sharding import register_fsdp2
from tempspec.modules.openai_client import Server
from tempspec.modules.processes import orderly_end

__all__ = ["CommandLine", "main", "run"]

TASKS = {
    "distillation": "tempspec.modules.distillation:DistillationModule",
    "language-model": "tempspec.modules.language_model:LanguageModelModule",
}
TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the data's own samplers know ranks, filler rows and how to resume
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
TOKENIZER_OF = {"distillation": ("target",), "language-model": ("tokenizer", "pretrained")}
"""Where each task's model names the tokenizer that the data use unless they name their own."""


def main(arguments: Sequence[str]) -> int:
    """Run one of the Lightning subcommands.

    Args:
        arguments: the subcommand and its options.

    Raises:
        UserError: whatever a user can do something about.
    """
    _command(arguments)
    return 0


def run(
    arguments: Sequence[str],
    earlier: LightningModule | None = None,
    command_line: type["CommandLine"] | None = None,
) -> LightningModule:
    """Run one of the Lightning subcommands, in a process that may run several. Not for `--estimate`, which builds none.

    Args:
        arguments: the subcommand and its options.
        earlier: the module of a subcommand that ran before; models that both name are not loaded again.
        command_line: a `CommandLine` of another kind.

    Returns:
        The module that ran.

    Raises:
        UserError: whatever a user can do something about.
    """
    return cast(LightningModule, _command(arguments, earlier, command_line).model)


def _command(
    arguments: Sequence[str],
    earlier: LightningModule | None = None,
    command_line: type["CommandLine"] | None = None,
) -> "CommandLine":
    """See `run`."""
    quiet()
    register_fsdp2()
    allow_imports()
    arguments = [CACHES.get(argument, argument) for argument in arguments]
    ahead = look_ahead(list(arguments))
    if ahead.task not in (None, *TASKS):
        raise UserError(f"task must be one of {', '.join(TASKS)}, got {ahead.task!r}")
    for note in ahead.notes:
        rank_zero_info(note)
    kind = command_line or CommandLine
    try:
        return kind(ahead.task or "distillation", ahead, earlier)
    except Exception as error:
        told = as_user_error(error)
        if told is None:
            raise
        raise told from error


def _module_class(task: str) -> type[LightningModule]:
    """The module of a task; only that one is imported."""
    module, _, name = TASKS[task].partition(":")
    return cast(type[LightningModule], getattr(importlib.import_module(module), name))


class CommandLine(LightningCLI):
    """The parser of one task and the run that it describes; constructing it does everything.

    Below are LightningCLI's hooks in the order in which its constructor calls them.

    Args:
        task: a key of `TASKS`.
        ahead: the arguments, and what is known from them before there is a parser.
        earlier: a module whose models are taken over where this one names the same.
    """

    def __init__(self, task: str, ahead: Ahead, earlier: LightningModule | None = None) -> None:
        self.earlier = earlier
        self.task = task
        self.ahead = ahead
        self.command = ahead.arguments[0]
        self.note = ""
        super().__init__(
            _module_class(task),
            TextDataModule,
            save_config_callback=None,  # Lightning's writes before anything is checked; see RunRecord
            trainer_class=GeneratingTrainer,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_class=Parser,
            parser_kwargs={"prog": "tempspec", self.command: described(self.command)},
            args=ahead.arguments,
            auto_configure_optimizers=False,
        )

    # -- parsing -------------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # Lightning's needs no instance
        """The one that is run, with the arguments of its Trainer method that are no options.

        Parsers of the others would be most of what there is to build.
        """
        return {self.command: hidden_arguments(self.command)}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ours beside Lightning's own."""
        super().add_default_arguments_to_parser(parser)
        add_shared_options(parser, self.task, self.ahead.run)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; Lightning warns when a script's own arguments are passed on like this.

        Raises:
            UserError: options that cannot be used together, or with this subcommand.
        """
        assert isinstance(args, list)
        self.config = parser.parse_args(args)
        check_options(self._options, self.command, self.ahead)

    @property
    def _options(self) -> Any:
        """The parsed configuration of the subcommand."""
        return self.config[self.config.subcommand]

    @property
    def folder(self) -> Path:
        """The run's folder of this stage."""
        return Path(self._options.run) / self.config.subcommand

    def _parse_ckpt_path(self) -> None:
        """Resolve and check `ckpt_path`; unlike Lightning's, it never overrides the configuration.

        Raises:
            UserError: no such file, or not a checkpoint.
        """
        self._options.ckpt_path = checkpoint_of(self._options.run, self._options.get("ckpt_path"))

    def before_instantiate_classes(self) -> None:
        """Settle what other options decide: the loggers' folders, the model that is measured, the data's tokenizer."""
        fill_save_dirs(self._options.trainer.logger, str(self.folder))
        if self.command in MEASURING and self._options.ckpt_path is None:
            self.note = measure_what_was_trained(self._options, self.task, self.ahead)
        if self._options.data.tokenizer is None:
            named = (self._options.model.get(key) for key in TOKENIZER_OF[self.task])
            self._options.data.tokenizer = next((path for path in named if path is not None), None)

    # -- building ------------------------------------------------------------------------------------------------------

    def _add_instantiators(self) -> None:
        """Lightning's keep the configuration for `save_hyperparameters`, which the language model's module alone calls.

        To write it once more takes a quarter of what parsing takes.
        """
        if self.task == "language-model":
            super()._add_instantiators()

    def instantiate_classes(self) -> None:
        """Build trainer, module and data.

        Raises:
            UserError: a constructor refuses its options.
        """
        if self._options.estimate:
            return
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise refused_options(error) from error
        if self.earlier is not None:
            self.model.adopt(self.earlier)
        if self.note and (self.command != "predict" or self.model.runner.needs_draft):
            rank_zero_info(self.note)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with this run's folder, metrics file and callbacks.

        Raises:
            UserError: the task's module has no such stage, or the launcher's variables do not fit (SLURM's, say).
        """
        if self.subcommand in ("predict", "generate") and not hasattr(self.model, "begin_generation"):
            raise UserError(f"{self.subcommand} needs task: distillation, whose model names a target; got {self.task}")
        trainer = self._options.trainer
        if trainer.logger is not False:
            kwargs["logger"] = [self._metrics_file(), *self._own_loggers()]
        checkpoints = trainer.enable_checkpointing is not False
        kwargs["enable_checkpointing"] = checkpoints and self.subcommand == "fit"
        self.record = RunRecord(self._parser(self.subcommand), self._options)
        self.trainer_defaults = TRAINER_DEFAULTS | {"callbacks": self._callbacks(kwargs["enable_checkpointing"])}
        try:
            return super().instantiate_trainer(default_root_dir=str(self.folder), **kwargs)
        except RuntimeError as error:
            raise UserError(" ".join(str(error).split())) from error

    def _metrics_file(self) -> MetricsFile:
        """metrics.csv, which every run has unless it logs nothing."""
        return MetricsFile(self.folder)

    def _own_loggers(self) -> list[Logger]:
        """What the configuration names besides: TensorBoard, Weights & Biases, MLflow."""
        named = self.config_init[self.config.subcommand].trainer.logger
        if named in (None, True):
            return []
        return list(named) if isinstance(named, Iterable) else [named]

    def _callbacks(self, checkpoints: bool) -> list[Callback]:
        """What every run gets besides the user's own callbacks."""
        callbacks: list[Callback] = [GracefulStop()]
        if self._options.trainer.enable_progress_bar is not False:
            callbacks.append(Progress())
        if not self._options.trainer.fast_dev_run:
            callbacks.append(self.record)
        if self.subcommand == "fit":
            callbacks += [MetricsPosition(), PretrainedExport(self.folder, self._keep_what_made_it)]
            changed = ChangedOptions(decisive(self._options.as_dict()), self._options.resume_changed)
            callbacks.append(changed)
        if checkpoints:
            callbacks.append(LastCheckpoint(self.folder / "checkpoints", self._options.checkpoint_every))
        return callbacks

    # -- running -------------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it, or say what it would take.

        Raises:
            UserError: another process fits or measures in this folder, or an option cannot be used.
        """
        if self._options.estimate:
            self._estimate()
            return
        fresh = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            self._check_models()
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone(), orderly_end():
                super()._run_subcommand(subcommand)
                self._finish_record()
        except Exception as error:
            with suppress(OSError):  # one that holds something stays
                for folder in fresh:
                    folder.rmdir()
            told = as_user_error(error, self._options.get("ckpt_path"))
            if told is None:
                raise
            raise told from error

    def _finish_record(self) -> None:
        """Write what is not written yet of a run that came to its end; a trial run and a cache leave none."""
        if not self._options.trainer.fast_dev_run and not caches(self._options):
            self.record.finish(self.trainer, self.datamodule)

    def _keep_what_made_it(self, draft: Path) -> None:
        """Keep this fit's configuration beside the draft that it has just written, for its card and for reports."""
        if self.task == "distillation":
            importlib.import_module("tempspec.reporting.measured").write_draft_record(draft, self.record.resolved())

    def _check_models(self) -> None:
        """Let models that are not there be an error before any text is read; a server's target need not be here."""
        if self.task == "distillation" and self._options.server is None:
            drafting = self.model.runner.needs_draft if self.command == "predict" else self.command != "generate"
            self.model.pair.check(needs_draft=drafting)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep a second command out of this folder; rows have a store that does so itself."""
        own = self.command in ("fit", "validate", "test") and self.trainer.is_global_zero
        if own:
            take_hold(self.folder)
        try:
            yield
        finally:
            if own:
                let_go(self.folder)

    def _estimate(self) -> None:
        """Print the table of `tempspec.cli.estimate`.

        Raises:
            UserError: another command, or another task.
        """
        if self.subcommand != "fit" or self.task != "distillation":
            raise UserError(f"--estimate is for fit with task: distillation, got {self.subcommand} with {self.task}")
        module = self.parser.instantiate_classes(self.config)[self.subcommand].model
        importlib.import_module("tempspec.cli.estimate").report(self._options, module)

    def validate(self, **kwargs: Any) -> None:
        """Measure, print and write metrics.json."""
        self._report(self.trainer.validate(**kwargs, verbose=False))

    def test(self, **kwargs: Any) -> None:
        """Measure, print and write metrics.json."""
        self._report(self.trainer.test(**kwargs, verbose=False))

    def predict(self, **kwargs: Any) -> None:
        """Decode; rows go to files, not to memory; print and write their metrics."""
        self.trainer.predict(**kwargs, return_predictions=False)
        self._results().report_sweep(self.model, self.folder)

    def generate(self, **kwargs: Any) -> None:
        """Write the target's own text and where it comes from, or a cache of the target."""
        server = self._server()
        if server is not None:
            shown = self._options.trainer.enable_progress_bar is not False
            if caches(kwargs):
                self._results().cache_served_teacher(self.model, self.datamodule, server, shown)
            else:
                self._results().generate_served(self.model, self.datamodule, server, self.folder, shown)
            return
        cast(GeneratingTrainer, self.trainer).generate(**kwargs)
        if caches(kwargs):
            return
        self._results().report_generated(self.model, self.datamodule, self.folder)

    def _server(self) -> Server | None:
        """Where generate takes its text from.

        Raises:
            UserError: the address cannot be one.
        """
        server = self.config_init[self.config.subcommand].server
        try:
            return Server(server) if isinstance(server, str) else server
        except ValueError as error:
            raise UserError(str(error)) from error

    def after_fit(self) -> None:
        """Write the draft's model card; say where this run's rows are of another draft, and of a path that misleads."""
        self.after_validate()
        if self.task == "distillation" and self.trainer.is_global_zero:
            other = importlib.import_module("tempspec.reporting.measured").rows_of_another_draft(
                Path(self._options.run)
            )
            written = self.folder / self.model.export_name
            head, sizes = written.name == "head", ""
            if not head:
                draft, target = self.model.pair.rows_of_output(written)
                sizes = sizes_note(draft, target, str(written), self.model.pair.target)
            for note in filter(None, (other, misread_note(str(written), head=head), sizes)):
                rank_zero_info(note)

    def after_validate(self) -> None:
        """Write the draft's model card again, with what was measured."""
        if self.task == "distillation" and self.trainer.is_global_zero:
            importlib.import_module("tempspec.reporting.model_card").write_draft_card(Path(self._options.run))

    after_predict = after_validate

    @staticmethod
    def _results() -> ModuleType:
        """The reports of the distillation task; imported with its module, not by every command."""
        return importlib.import_module("tempspec.cli.stage_files")

    def _report(self, results: Sequence[Mapping[str, float]]) -> None:
        """Print and keep what an evaluation measured, on rank 0."""
        if self.task == "distillation":
            self._results().report_grids(self.model, self.folder)
        elif self.trainer.is_global_zero and results:
            write_atomically(self.folder / "metrics.json", json.dumps(dict(results[0]), indent=2) + "\n")
            print_metrics(results[0])
