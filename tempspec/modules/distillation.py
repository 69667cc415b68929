"""The LightningModule of the project: distils a draft, measures it, decodes with it (floor 5).

One YAML describes one experiment: fit distils, validate and test give the analytic acceptance at every pair of
temperatures, predict decodes, generate writes the target's own text. What each does is in `tempspec.modules.fit`,
`validate` and `predict`; here are the models that they share, and Lightning's hooks.

Axes: B batch, T positions, N the batch's response tokens, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempspec.decoding.sweep import Sweep
from tempspec.decoding.work import Work
from tempspec.errors import UserError
from tempspec.files import stage_folder
from tempspec.interfaces import HeadModel
from tempspec.metrics.table import ResultTable
from tempspec.models.cutting import Spacing
from tempspec.models.decodable import check_decodable
from tempspec.models.head_draft import DraftModel, cast_draft, head_state, parameters
from tempspec.models.loading import ModelOptions, round_as_exported
from tempspec.models.pair import Pair
from tempspec.modules.begin_reading import check_batch_ids, logit_source
from tempspec.modules.callbacks import BatchSeed, FiniteLoss, TrainingMonitor, lacking, settle_stop, stop_code
from tempspec.modules.callbacks.precision import PrecisionNotes
from tempspec.modules.callbacks.served import BestServed
from tempspec.modules.draft_vocabulary import head_ids
from tempspec.modules.fit.cache_folder import Watch
from tempspec.modules.fit.optim import CLIP, fine_tuning, optimizers
from tempspec.modules.fit.sharding import is_sharding, refuse_unshardable, shard, shard_layers
from tempspec.modules.fit.training import Cached, DraftTraining
from tempspec.modules.named import DrafterLike, HeadLike, LengthLike, VerifierLike, plugin
from tempspec.modules.outputs import Batch, LogitSource
from tempspec.modules.predict.sweep_runner import PromptSets, SweepRunner
from tempspec.modules.results import acceptance_table, decoding_table
from tempspec.modules.validate.analytic import Measurement
from tempspec.plugins.drafters import CausalLM, Speculator
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import TokenwiseRejection


class DistillationModule(pl.LightningModule):
    """Distils a draft from a target, and measures what speculative decoding gains with it.

    Its batches are those of `tempspec.data.module.TextDataModule`.

    Args:
        target: folder or hub name of the target; it is frozen.
        draft: folder or hub name of the draft; with `head` the folder of a trained head.
        draft_layers: make the draft from the target's first N layers instead of loading one.
        draft_spacing: which layers those are: the `first`, or `even`ly spread ones from the first to the last.
        draft_width: the hidden size of such a draft; a narrower one takes the leading part of every weight.
        head: the draft is a head of this kind on the target's hidden states, such as `Eagle3`: a new one, or `draft`.
        loading: dtype, attention implementations, quantisation, revisions. A draft in training is float32 unless a
            dtype is named, and is saved in the dtype that it came in.
        optimizer: any of torch.optim, whose weight decay is then of all parameters; by default AdamW(lr=1e-4,
            betas=(0.9, 0.95), weight_decay=0.1) with a decay of matrices only. Gradients are clipped at 1 unless the
            trainer's gradient_clip_val says otherwise; 0 is no clipping.
        lr_scheduler: a learning-rate schedule, stepped with the optimiser; by default WarmupCosine, with 5% of the
            steps to warm up.
        validation_temperatures: target and draft temperatures of the analytic grid; 0 is argmax.
        verifiers: acceptance rules of predict, by names of your own; TokenwiseRejection by default.
        drafter: what proposes tokens in predict; by default the draft: CausalLM, or Speculator for a head.
        length: how many tokens to draft; FixedLength(4) by default.
        sweep: temperatures, lengths and passes of predict and generate.
        seed: random loss temperatures derive from it.
        training: the options of `tempspec.modules.fit.training.DraftTraining`, such as `divergence` and `temperature`.
    """

    def __init__(
        self,
        target: str,
        draft: str | None = None,
        draft_layers: int | None = None,
        draft_spacing: Spacing = "first",
        draft_width: int | None = None,
        head: HeadLike | None = None,
        loading: ModelOptions | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        validation_temperatures: list[float] | float | None = None,
        verifiers: dict[str, VerifierLike] | None = None,
        drafter: DrafterLike | None = None,
        length: LengthLike | None = None,
        sweep: Sweep | None = None,
        seed: int = 0,
        **training: Any,
    ) -> None:
        super().__init__()
        temperatures = [0.0, 0.5, 1.0, 1.5] if validation_temperatures is None else validation_temperatures
        temperatures = temperatures if isinstance(temperatures, list) else [temperatures]
        rules = {"token": TokenwiseRejection()} if verifiers is None else verifiers
        options, kind = ModelOptions() if loading is None else loading, None if head is None else plugin("heads", head)
        self.pair = Pair(target, draft, draft_layers, options, draft_spacing, draft_width, kind)
        self.draft_training = DraftTraining(self.pair, seed, **training)
        # Registered here as well, so that what these two learn is trained and saved.
        self.divergence = self.draft_training.divergence
        self.temperature = self.draft_training.temperature
        self.measurement = Measurement.of(temperatures, self.draft_training.serve_temperatures)
        self.runner = SweepRunner(
            self.pair,
            Sweep() if sweep is None else sweep,
            {label: plugin("verifiers", rule) for label, rule in rules.items()},
            (CausalLM() if head is None else Speculator()) if drafter is None else plugin("drafters", drafter),
            FixedLength() if length is None else plugin("lengths", length),
        )
        self.draft: DraftModel | None = None
        self.source: LogitSource | None = None
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self._adopted: list[DraftModel] = []  # a list, to stay out of the module tree until it is needed
        self._spread = False

    # -- models -------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The pair's tokenizer."""
        return self.pair.tokenizer

    @property
    def stage(self) -> str:
        """What the trainer is doing: `fit`, `validate`, `test`, `predict`; empty without a trainer."""
        return self._trainer.state.fn.value if self._trainer and self._trainer.state.fn else ""

    def configure_model(self) -> None:
        """Load the models that this stage needs; the target never becomes part of the module."""
        if self.draft is not None and self.stage == "predict":  # rows must say which weights these are
            self.pair.remember(self.draft)
        if self._trainer is None:
            self.draft = self.draft or self.pair.load_draft(self.pair.options.dtype)
            return
        self.pair.use(self.trainer.strategy.root_device, decoding=self.stage == "predict")
        if not self._from_cache:
            self._place_target()
        if self.draft_training.reference is not None and self.stage == "fit":
            self.draft_training.reference()
        if self._adopted and self.stage != "fit" and self._needs_draft():
            self.draft = self._adopted.pop()
        if self.draft is not None:
            self.pair.adapt(self.draft)
        training = self.stage == "fit" and self.pair.options.dtype == "auto"
        if self.draft is None and self._needs_draft():
            dtype = "float32" if training else self.pair.options.dtype
            self.draft = self.pair.load_draft(dtype, head_ids(self.pair, self.trainer))
        if self.draft is not None and self.stage == "fit":
            head = isinstance(self.draft, HeadModel)  # before it is trained for hours, not after
            check_decodable(self.pair.target_model if head else self.draft)
            if training:  # it may have been measured before, in its own dtype
                cast_draft(self.draft, torch.float32)
            self.draft_training.prepare(self.draft)
        if self._sharded and self.draft is not None:
            online, learned = self.draft_training.online, self._learned_besides()
            refuse_unshardable(self.draft, writes=online is not None, learns=bool(learned))
            shard(self.draft, self.trainer)

    def _apply(self, fn: Callable[[Tensor], Tensor], *more: Any) -> Self:
        """Move; of another dtype is the draft in fit alone: elsewhere both models have those of `loading`.

        Lightning rounds a whole module under `bf16-true` and `16-true`, which the target is no part of.
        """
        own = fn if self.stage in ("", "fit") else lambda tensor: tensor.to(fn(tensor).device)
        return super()._apply(own, *more)

    def _place_target(self) -> None:
        """The target on this process's device: its layers in parts where that is asked for, and nothing is decoded."""
        device = self.trainer.strategy.root_device
        spread = self.pair.options.shard_target and self.stage != "predict" and self.trainer.world_size > 1
        if spread and not self._spread:
            if self.draft_training.online is not None:
                raise UserError("online text is written row by row: set model.loading.shard_target: false")
            self.pair.use(torch.device("cpu"), decoding=False)  # a device may not hold it whole
            shard_layers(self.pair.target_model, self.trainer)
            self.pair.use(device, decoding=False)
        self._spread = self._spread or spread
        _ = self.pair.target_model

    @property
    def _sharded(self) -> bool:
        """Whether the draft is trained or validated in parts."""
        return self.stage != "predict" and is_sharding(self.trainer)

    def adopt(self, earlier: "DistillationModule") -> None:
        """Take over what a module that ran before has loaded; for runs one after the other in a process.

        Its target always, where both name the same, with what was read of it; its draft where it was loaded to measure
        and not to train.
        """
        self.pair.adopt(earlier.pair)
        self.measurement.readings = earlier.measurement.readings
        named = (self.pair.draft, self.pair.draft_layers, self.pair.options)
        known = (earlier.pair.draft, None, earlier.pair.options)
        heads = self.pair.head or earlier.pair.head
        if earlier.draft is not None and earlier.stage != "fit" and named == known and heads is None:
            self._adopted = [earlier.draft]

    def setup(self, stage: str) -> None:
        """Refuse rows that a model was not made for, before anything is trained or measured.

        Raises:
            UserError: the data's rows are longer than a model's context.
        """
        self.source = None  # another stage, other models: they are tried again
        data = getattr(self.trainer, "datamodule", None)
        if stage != "predict" and data is not None:
            self.pair.check_rows(data.max_length)
        if stage == "fit":
            self.draft_training.take_up_caches(data)
        if self._from_cache:
            self.trainer.limit_val_batches = 0  # nothing is validated without a target

    @property
    def _from_cache(self) -> bool:
        """Whether this stage learns from a cached teacher, without the target."""
        return self.draft_training.teacher is not None and self.stage == "fit"

    def cache_target(self, kind: Cached, data: Any, device: torch.device, watch: Watch | None = None) -> None:
        """Write the cache of the target that `teacher` or `features` describes; see `DraftTraining.write_cache`.

        In several processes, which then have a trainer, the target's layers are spread over them before.
        """
        if self._trainer is not None:
            self._place_target()
        self.draft_training.write_cache(kind, data, device, watch)

    def _needs_draft(self) -> bool:
        return self.stage != "predict" or self.runner.needs_draft

    @property
    def parameter_ratio(self) -> float | None:
        """The draft's parameters over the target's; None while no draft is loaded, or predict needs none."""
        if self.draft is None or not self.runner.needs_draft:
            return None
        return parameters(self.draft) / self.pair.target_model.num_parameters()

    @property
    def export_name(self) -> str:
        """The folder of the draft, in that of fit."""
        return "draft" if self.pair.head is None else "head"

    def export_model(self) -> DraftModel:
        """The draft, to be saved."""
        assert self.draft is not None
        return self.draft

    def save_export(self, folder: Path, state: dict[str, Any] | None) -> None:
        """Write the draft's folder; see `tempspec.modules.callbacks.export.Exportable`."""
        self.pair.save_draft(self.export_model(), folder, state)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The curves that every training wants, a stop when the loss is no number, a word where laws are not exact."""
        best = [BestServed()] if self.measurement.served and self.stage == "fit" else []
        finite = FiniteLoss(self.draft_training.forgets)
        return lacking(self, TrainingMonitor(), finite, BatchSeed(), PrecisionNotes(), *best)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over the draft's parameters, and without decay over what a schedule or a divergence learns."""
        assert self.draft is not None
        draft = [parameter for parameter in self.draft.parameters() if parameter.requires_grad]
        return optimizers(self, draft, self.optimizer, self.lr_scheduler, self._learned_besides(), pretrained=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; where it says nothing, as a draft needs it that was trained before."""
        value = CLIP if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, value, gradient_clip_algorithm)

    def _learned_besides(self) -> list[torch.nn.Parameter]:
        """What is trained and not the draft's: of a schedule or a divergence that learns."""
        named = self.named_parameters()
        return [value for name, value in named if value.requires_grad and not name.startswith("draft.")]

    # -- fit ----------------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Begin; say which defaults are those of fine-tuning."""
        self._begin_reading()
        named = self.optimizer is not None, self.lr_scheduler is not None
        if note := fine_tuning(*named, self.trainer.gradient_clip_val):
            rank_zero_info(note)
        generation = getattr(self.trainer.datamodule, "generation_temperatures", [])  # type: ignore[attr-defined]
        self.draft_training.total_steps = self._total_steps()
        self.draft_training.begin(generation, self.measurement.temperatures)

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """The divergence at the scheduled temperature over the response tokens, and how many tokens were read."""
        assert self.draft is not None
        assert self.source is not None
        place = self.trainer.global_step, self.trainer.global_rank
        learned = self.draft_training.learn(self.draft, batch, self.source, *place)
        for name, value in learned.logged.items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "acceptance"))
        seen_BT = learned.batch["attention_mask"]
        return {"loss": learned.loss, "tokens": seen_BT.sum(), "positions": seen_BT.numel()}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell the divergence how the step went."""
        self.draft_training.observe_step(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what fit would need besides weights, and which tokens a head drafts."""
        checkpoint |= self.draft_training.state() | head_state(self.draft)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the weights of a conditioned draft; continue with what fit has kept.

        Outside of fit the draft becomes what its exported folder holds, whose weights are rounded.

        Raises:
            UserError: another number of processes wrote it, or the draft is conditioned by changes of another rank.
        """
        if self.draft is not None:
            self.draft_training.condition(self.draft)
        if isinstance(self.draft, HeadModel):
            self.pair.take_up_head(self.draft, checkpoint, fit=self.stage == "fit")
        elif self.draft is not None and self.stage != "fit":
            round_as_exported(self.draft, checkpoint["state_dict"], self.pair.exported_dtype, self.pair.options)
        self.draft_training.take_up(checkpoint, self.trainer.global_rank, self.trainer.world_size)

    def _begin_reading(self) -> None:
        """Choose how batches are read, before any step.

        Raises:
            UserError: the rows hold ids that the target has no embedding for, or nobody has said what a head drafts.
        """
        assert self.draft is not None
        self.pair.check_drafted_ids()
        cached = self._from_cache
        if cached and isinstance(self.draft, PreTrainedModel):
            self.draft_training.check_draft_ids(self.draft)
        else:
            check_batch_ids(self.pair, self.trainer)
        if self.source is None:
            models = self.pair, self.draft_training, self.draft
            self.source = logit_source(*models, self.trainer, cached=cached, sharded=self._sharded)

    def _total_steps(self) -> int | None:
        """The optimiser steps of the run, by its steps and its epochs; None for a run without an end."""
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if 0 <= steps < float("inf") else None

    # -- validate, test -----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start an empty grid for each validation set."""
        self._begin_reading()
        self._start_measuring(self.trainer.datamodule.validation_names)  # type: ignore[attr-defined]
        if self.stage == "validate" and self.runner.sweep.fitted:
            sweep = self.runner.sweep
            self.measurement.start_fit(sweep.target_temperatures, sweep.fitted_on, sweep.truncation, self.device)

    def on_test_epoch_start(self) -> None:
        """Start an empty grid for each test set."""
        self._begin_reading()
        self._start_measuring(self.trainer.datamodule.test_names)  # type: ignore[attr-defined]

    def _start_measuring(self, names: list[str]) -> None:
        if self._spread:
            self.measurement.readings = None
        self.measurement.start(names, self.device, self.draft, self.runner.length.longest)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """One forward of each model gives the acceptance at every pair of temperatures."""
        assert self.draft is not None
        assert self.source is not None
        self.measurement.read(batch, self.draft, self.pair.target_model, self.source)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the acceptance of every set, and drafted token, at equal temperatures; checkpoints follow its mean."""
        self._log_grids("val")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._log_grids("test")

    def _log_grids(self, prefix: str) -> None:
        values, acceptance, tokens = self.measurement.means()
        self.log_dict({f"{prefix}/{name}": value for name, value in values.items()}, rank_zero_only=True)
        self.log(f"{prefix}/acceptance", acceptance, prog_bar=True)
        self.log(f"{prefix}/block_efficiency", tokens)

    # -- predict, generate --------------------------------------------------------------------------------------------

    def begin_generation(self) -> None:
        """Let the next predict write the target's own text: no draft, the sweep's generation temperatures."""
        self.runner.generating = True

    def work(self, prompt_sets: PromptSets) -> list[Work]:
        """What is left to decode, pass by pass; the data module calls it. See `SweepRunner.plan`."""
        trainer = self.trainer
        checkpoint = str(trainer.ckpt_path) if trainer.ckpt_path else None
        folder = stage_folder(trainer)
        self.runner.check_engines(self.draft)
        return self.runner.plan(prompt_sets, folder, rank=trainer.global_rank, checkpoint=checkpoint)

    def on_predict_start(self) -> None:
        """Decode without dropout; say where rows outgrow the draft; measure step times where its length needs them."""
        if self.draft is not None:
            self.pair.check_drafted_ids()
            self.draft.eval()
        self.runner.check_context(self.draft if self.runner.needs_draft else None)
        self.runner.measure_steps(self.draft, self.trainer.global_rank)

    def predict_step(self, batch: Work, batch_index: int) -> int:
        """Decode a pass and write its rows; returns the exit code that a process was asked to stop with, or 0."""
        code = self.runner.decode(batch, self.draft, stop=lambda: stop_code(self.trainer))
        settle_stop(self.trainer, code)
        return code

    def on_predict_end(self) -> None:
        """Merge the rows of all processes into one file."""
        self.runner.finish(self.trainer.global_rank)

    # -- results ------------------------------------------------------------------------------------------------------

    def acceptance(self) -> ResultTable:
        """The analytic acceptance of the last validation, or test, at every pair of temperatures, by set.

        A collective under DDP: every rank must call it.

        Raises:
            UserError: nothing was validated yet.
        """
        return acceptance_table(self.measurement.grids)

    def results(self) -> ResultTable:
        """What the last predict measured, a row for each verifier, prompt set and pair of temperatures.

        Raises:
            UserError: nothing was decoded yet.
        """
        return decoding_table(self.runner, self.parameter_ratio)
