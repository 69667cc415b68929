"""fit, validate, test, predict and generate: one LightningCLI, one YAML (floor 6).

The YAML's `task` chooses the module before the parser is built; its `run` is the folder that every stage writes its own
subfolder of.
"""

import importlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger

from tempspec import registry
from tempspec.cli.ahead import look_ahead, option_pairs
from tempspec.cli.checkpoint import check_checkpoint
from tempspec.cli.messages import explain
from tempspec.cli.parser import Parser
from tempspec.cli.progress import Progress
from tempspec.cli.quiet import quiet
from tempspec.cli.tables import print_metrics
from tempspec.data.environment import write_environment
from tempspec.data.module import TextDataModule
from tempspec.errors import UserError
from tempspec.files import replacing, write_atomically
from tempspec.modules.callbacks import GracefulStop, LastCheckpoint, PretrainedExport
from tempspec.modules.metrics_file import MetricsFile, MetricsPosition
from tempspec.modules.server import Server
from tempspec.modules.sharding import register_fsdp2

__all__ = ["CommandLine", "GeneratingTrainer", "main", "run"]

TASKS = {
    "distillation": "tempspec.modules.distillation:DistillationModule",
    "language-model": "tempspec.modules.language_model:LanguageModelModule",
}
TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the data's own samplers know ranks, filler rows and how to resume
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
_RESTORING = ("Error(s) in loading state_dict", "loaded state dict", "Trying to restore")
"""How torch and Lightning begin to say that a checkpoint does not fit."""

Task = Literal["distillation", "language-model"]

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
    _allow_imports()
    arguments = ["--cache_teacher=true" if argument == "--cache-teacher" else argument for argument in arguments]
    before = look_ahead(list(arguments))
    if before.get("task") not in (None, *TASKS):
        raise UserError(f"task must be one of {', '.join(TASKS)}, got {before['task']!r}")
    kind = command_line or CommandLine
    try:
        return kind(before.get("task") or "distillation", before["run"], list(arguments), earlier)
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except torch.OutOfMemoryError as error:
        raise UserError("out of memory: lower data.batch_size, data.max_length or model.sweep.slots") from error


def _allow_imports() -> None:
    """Let a configuration name classes of our own packages and of registered plugins, and of nothing else."""
    registry.load()
    asked = [name for name in os.environ.get("TEMPSPEC_ALLOW", "").split(",") if name]
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=["tempspec", "lightning", "torch.optim", *sorted(registry.allowed_packages()), *asked],
    )


def _module_class(task: str) -> type[LightningModule]:
    """The module of a task; only that one is imported."""
    module, _, name = TASKS[task].partition(":")
    return cast(type[LightningModule], getattr(importlib.import_module(module), name))


class GeneratingTrainer(Trainer):
    """Lightning's Trainer with one more entry point."""

    def generate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        cache_teacher: bool = False,
    ) -> None:
        """Write the target's own text at the sweep's generation temperatures, or what `model.teacher` keeps of it.

        Args:
            model: a module with `begin_generation`.
            datamodule: where the prompts come from.
            ckpt_path: a checkpoint file, or `last`.
            cache_teacher: cache the target's logits on the training rows, as model.teacher says; no text is written.

        Raises:
            UserError: a cache is to be written by several processes.
        """
        if cache_teacher:
            if self.world_size > 1:
                raise UserError(
                    f"--cache-teacher expected one process, got {self.world_size}: set trainer.num_nodes and "
                    "trainer.devices to 1"
                )
            model.cache_teacher(datamodule, self.strategy.root_device)  # type: ignore[operator]
            return
        model.begin_generation()  # type: ignore[operator]
        self.predict(model, datamodule=datamodule, return_predictions=False, ckpt_path=ckpt_path)


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration and the environment to the stage's folder, whatever logger is used."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write `config.yaml`, which every subcommand can read again, and `environment.json`."""
        self.write(trainer, trainer.datamodule, stage)  # type: ignore[attr-defined]

    def write(self, trainer: Trainer, data: TextDataModule, stage: str) -> None:
        """The same for a trainer that has not been given its data, because it runs nothing."""
        folder, config = Path(trainer.default_root_dir), self.config.clone()
        config.pop("cache_teacher", None)  # generate's alone
        with replacing(folder / "config.yaml") as partial:
            self.parser.save(config, str(partial), skip_none=False, overwrite=True, multifile=False)
        device = str(trainer.strategy.root_device)
        write_environment(folder, data.sources(stage), device=device, processes=trainer.world_size)


class CommandLine(LightningCLI):
    """The parser of one task and the run that it describes; constructing it does everything.

    Args:
        task: a key of `TASKS`.
        run: the run folder unless an option or configuration names another.
        arguments: the subcommand and its options.
        earlier: a module whose models are taken over where this one names the same.
    """

    def __init__(self, task: str, run: str, arguments: list[str], earlier: LightningModule | None = None) -> None:
        self.earlier = earlier
        self.task = task
        self.default_run = run
        self.command = arguments[0]
        super().__init__(
            _module_class(task),
            TextDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_class=GeneratingTrainer,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_class=Parser,
            parser_kwargs={"prog": "tempspec"},
            args=arguments,
            auto_configure_optimizers=False,
        )

    # -- parsing -------------------------------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # Lightning's needs no instance
        """The one that is run, with the arguments of its Trainer method that are no options.

        Parsers of the others would be most of what there is to build.
        """
        hidden = {"model", "datamodule", "dataloaders", "weights_only", "return_predictions", "verbose"}
        arguments = {
            "fit": {"model", "datamodule", "train_dataloaders", "val_dataloaders", "weights_only"},
            "validate": hidden,
            "test": hidden,
            "predict": hidden,
            "generate": {"model", "datamodule"},
        }
        return {self.command: arguments[self.command]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `task` and `run` beside Lightning's own."""
        super().add_default_arguments_to_parser(parser)
        parser.add_argument("--task", type=Task, default=self.task, help="What is run: decides what `model` takes.")
        parser.add_argument("--run", type=str, default=self.default_run, help="The folder that the run leaves.")
        parser.add_argument(
            "--server",
            type=Server | str | None,
            default=None,
            help="Where generate takes the target's text from, instead of running it: an OpenAI-compatible server's "
            "address, or {url: ADDRESS, concurrency: 16, ...}. The API key comes from the environment alone.",
        )
        parser.add_argument(
            "--estimate", action="store_true", help="Print what fit takes of each device's memory; run nothing."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; Lightning warns when a script's own arguments are passed on like this.

        Raises:
            UserError: `--server` for another subcommand; in a configuration, which all of them share, it is fine.
        """
        assert isinstance(args, list)
        self.config = parser.parse_args(args)
        command = self.config.subcommand
        if command != "generate" and any(option.split(".")[0] == "--server" for option, _ in option_pairs(args)):
            raise UserError(f"--server is an option of generate, got it with {command}: leave it out")

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

        `last` is the run's own checkpoint, `auto` the same or, where there is none yet, nothing.

        Raises:
            UserError: no such file, or not a checkpoint.
        """
        path = self._options.get("ckpt_path")
        last = Path(self._options.run) / "fit" / "checkpoints" / "last.ckpt"
        if path == "auto":
            self._options.ckpt_path = path = str(last) if last.is_file() else None
        if path is None:
            return
        if path == "last":
            if not last.is_file():
                raise UserError(f"ckpt_path is last, but there is no {last}; leave ckpt_path out to start from scratch")
            self._options.ckpt_path = path = str(last)
        check_checkpoint(path)

    def before_instantiate_classes(self) -> None:
        """Let the data use the model's tokenizer unless they name their own.

        Raises:
            UserError: the Trainer's own folder is set, or a server is to give a teacher's logits.
        """
        if self._options.get("cache_teacher") and self._options.server is not None:
            raise UserError(
                "expected --cache-teacher or a server, got both: a server gives no logits; add --server null"
            )
        if self._options.trainer.default_root_dir is not None:
            raise UserError("trainer.default_root_dir is made from run; set run: FOLDER instead")
        if self._options.data.tokenizer is None:
            named = (self._options.model.get(key) for key in TOKENIZER_OF[self.task])
            self._options.data.tokenizer = next((path for path in named if path is not None), None)

    # -- building ------------------------------------------------------------------------------------------------------

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
            raise UserError(explain(str(error), [])) from error
        if self.earlier is not None:
            self.model.adopt(self.earlier)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with this run's folder, metrics file and callbacks.

        Raises:
            UserError: the task's module has no such stage, or the launcher's variables do not fit (SLURM's, say).
        """
        if self.subcommand in ("predict", "generate") and not hasattr(self.model, "begin_generation"):
            raise UserError(f"{self.subcommand} needs task: distillation, whose model names a target; got {self.task}")
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer = self._options.trainer
        if trainer.logger is not False:
            kwargs["logger"] = [self._metrics_file(), *self._own_loggers()]
        checkpoints = trainer.enable_checkpointing is not False
        kwargs["enable_checkpointing"] = checkpoints and self.subcommand == "fit"
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
        if self.subcommand == "fit":
            callbacks += [MetricsPosition(), PretrainedExport(self.folder)]
        if checkpoints:
            callbacks.append(LastCheckpoint(self.folder / "checkpoints"))
        return callbacks

    # -- running -------------------------------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it, or say what it would take.

        Raises:
            UserError: the checkpoint is of another model, or the job has other devices than the trainer.
        """
        if self._options.estimate:
            self._estimate()
            return
        try:
            super()._run_subcommand(subcommand)
        except (RuntimeError, ValueError, KeyError) as error:
            path = self._options.get("ckpt_path")
            if path is not None and str(error).lstrip("'\"").startswith(_RESTORING):
                raise UserError(
                    f"the checkpoint {path} does not fit this configuration's model or optimizer; give the one that "
                    "fit left, or the configuration that it was trained with (config.yaml beside checkpoints/)"
                ) from error
            if "SLURM" in str(error):  # devices or num_nodes are not those of the job
                raise UserError(" ".join(str(error).split())) from error
            raise

    def _estimate(self) -> None:
        """Print the table of `tempspec.cli.estimate`.

        Raises:
            UserError: another command, or another task.
        """
        if self.subcommand != "fit" or self.task != "distillation":
            raise UserError(f"--estimate is for fit with task: distillation, got {self.subcommand} with {self.task}")
        importlib.import_module("tempspec.cli.estimate").report(self._options)

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
        """Write the target's own text and where it comes from."""
        server = self._server()
        if server is not None:
            SaveConfig(self._parser(self.subcommand), self._options).write(self.trainer, self.datamodule, "predict")
            self._results().generate_served(self.model, self.datamodule, server, self.folder)
            return
        cast(GeneratingTrainer, self.trainer).generate(**kwargs)
        if kwargs.get("cache_teacher"):
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
        """Write the draft's model card; validate and predict write it again with what they measured."""
        if self.task == "distillation" and self.trainer.is_global_zero:
            importlib.import_module("tempspec.reporting.card").write_draft_card(Path(self._options.run))

    after_validate = after_fit
    after_predict = after_fit

    @staticmethod
    def _results() -> ModuleType:
        """The reports of the distillation task; imported with its module, not by every command."""
        return importlib.import_module("tempspec.cli.results")

    def _report(self, results: Sequence[Mapping[str, float]]) -> None:
        """Print and keep what an evaluation measured, on rank 0."""
        if self.task == "distillation":
            self._results().report_grids(self.model, self.folder)
        elif self.trainer.is_global_zero and results:
            write_atomically(self.folder / "metrics.json", json.dumps(dict(results[0]), indent=2) + "\n")
            print_metrics(results[0])
