"""The LightningModule of the project: distils a draft, measures it, decodes with it (floor 5).

One YAML describes one experiment: fit distils, validate and test give the analytic acceptance at every pair of
temperatures, predict decodes, generate writes the target's own text.

Axes: B batch, T positions, N the batch's response tokens, V vocabulary.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempspec.core.noise import fold
from tempspec.decoding.sweep import Sweep
from tempspec.decoding.work import Work
from tempspec.errors import UserError
from tempspec.files import stage_folder
from tempspec.interfaces import LossContext, TemperatureSchedule
from tempspec.metrics.table import ResultTable
from tempspec.models.conditioning import condition, conditioned_rank, is_conditioned, set_temperature
from tempspec.models.cutting import Spacing
from tempspec.models.decodable import check_decodable
from tempspec.models.loading import ModelOptions, cast_weights, weights_of
from tempspec.models.pair import Pair
from tempspec.models.ragged import context_length, largest_id
from tempspec.models.recomputing import recompute_activations
from tempspec.modules.callbacks import BatchInStep, BatchSeed, FiniteLoss, TrainingMonitor, ask_stop, lacking, stop_code
from tempspec.modules.callbacks.precision import PrecisionNotes
from tempspec.modules.fit.loss import Cached, FitLoss, Heads, Logits, Moment, Sides, Tally, TokenSelection, response
from tempspec.modules.fit.online_text import OnlineText, OnlineWriter
from tempspec.modules.fit.optim import CLIP, fine_tuning, optimizers
from tempspec.modules.fit.sharding import is_sharding, shard, shard_layers
from tempspec.modules.fit.teacher import open_cache, write_cache
from tempspec.modules.fit.teacher_cache import CachedTeacher, TeacherCache
from tempspec.modules.fit.temperature_check import Span, inconsistency
from tempspec.modules.ids import check_ids, loaded_sets, make_ids_readable
from tempspec.modules.named import DivergenceLike, DrafterLike, LengthLike, ScheduleLike, VerifierLike, plugin
from tempspec.modules.outputs import Outputs, linear_heads, reading_of
from tempspec.modules.predict.sweep_runner import PromptSets, SweepRunner
from tempspec.modules.processes import of_all
from tempspec.modules.results import acceptance_table, decoding_table
from tempspec.modules.validate.analytic import Measurement
from tempspec.plugins.divergences import ForwardKL
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.schedules import Constant
from tempspec.plugins.verifiers import TokenwiseRejection

Batch = Mapping[str, Tensor]


class DistillationModule(pl.LightningModule):
    """Distils a draft from a target, and measures what speculative decoding gains with it.

    Its batches are those of `tempspec.data.module.TextDataModule`.

    Args:
        target: folder or hub name of the target; it is frozen.
        draft: folder or hub name of the draft.
        draft_layers: make the draft from the target's first N layers instead of loading one.
        draft_spacing: which layers those are: the `first`, or `even`ly spread ones from the first to the last.
        draft_width: the hidden size of a draft made so; a narrower one takes the leading part of every weight.
        loading: dtype, attention implementations, quantisation, revisions. A draft in training is float32 unless a
            dtype is named, and saved in what it came in.
        divergence: what fit minimises; ForwardKL by default.
        temperature: the loss temperature, a number or a schedule; 1 by default.
        label_weight: share of the text's own next token in the loss (cross-entropy at temperature 1), in [0, 1].
        average: the loss is the mean over all tokens of a batch, or over its sequences of their own means; batches that
            are accumulated count alike.
        selection: learn only the tokens that the draft can still gain on, by a reference draft; all by default.
        conditioning_rank: make the draft's weights depend on its temperature by changes of this rank: one draft for all
            temperatures, which `tempspec export` folds into an ordinary one; 0 for an ordinary draft.
        online: rows whose response is written while training, by the draft or the target; none by default.
        teacher: a cache of the target's logits: `generate --cache-teacher` writes it, and fit then loads no target.
        chunk_tokens: tokens whose logits exist at a time; null chooses, 0 computes whole logits.
        gradient_checkpointing: keep only the input of each of the draft's layers in fit, and compute the rest again in
            the backward pass: a third more time for a fraction of the activations.
        optimizer: any of torch.optim, whose weight decay is then of all parameters; by default AdamW(lr=1e-4,
            betas=(0.9, 0.95), weight_decay=0.1), whose decay is of matrices alone. Gradients are clipped at 1 unless
            the trainer's gradient_clip_val says otherwise; 0 is no clipping.
        lr_scheduler: a learning-rate schedule, stepped with the optimiser; by default WarmupCosine, with 5% of the
            steps to warm up.
        validation_temperatures: target and draft temperatures of the analytic grid; 0 is argmax.
        verifiers: acceptance rules of predict, by names of your own; TokenwiseRejection by default.
        drafter: what proposes tokens in predict; CausalLM (the draft) by default.
        length: how many tokens to draft; FixedLength(4) by default.
        sweep: temperatures, lengths and passes of predict and generate.
        seed: random loss temperatures derive from it.
    """

    export_name = "draft"

    def __init__(
        self,
        target: str,
        draft: str | None = None,
        draft_layers: int | None = None,
        draft_spacing: Spacing = "first",
        draft_width: int | None = None,
        loading: ModelOptions | None = None,
        divergence: DivergenceLike | None = None,
        temperature: ScheduleLike | float | None = None,
        label_weight: float = 0.0,
        average: Literal["token", "sequence"] = "token",
        selection: TokenSelection | None = None,
        conditioning_rank: int = 0,
        online: OnlineText | None = None,
        teacher: CachedTeacher | None = None,
        chunk_tokens: int | None = None,
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        validation_temperatures: list[float] | float | None = None,
        verifiers: dict[str, VerifierLike] | None = None,
        drafter: DrafterLike | None = None,
        length: LengthLike | None = None,
        sweep: Sweep | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_weight <= 1:
            raise UserError(f"label_weight must be in [0, 1], got {label_weight}")
        if chunk_tokens is not None and chunk_tokens < 0:
            raise UserError(f"chunk_tokens must be 0 (whole logits) or more, got {chunk_tokens}")
        temperatures = [0.0, 0.5, 1.0, 1.5] if validation_temperatures is None else validation_temperatures
        temperatures = temperatures if isinstance(temperatures, list) else [temperatures]
        if not temperatures or min(temperatures) < 0:
            raise UserError(f"validation_temperatures must be 0 or more, at least one, got {temperatures}")
        if isinstance(temperature, str):
            temperature = plugin("schedules", temperature)
        if not isinstance(temperature, TemperatureSchedule):
            temperature = Constant(1.0 if temperature is None else temperature)
        rules = {"token": TokenwiseRejection()} if verifiers is None else verifiers
        self.pair = Pair(
            target, draft, draft_layers, ModelOptions() if loading is None else loading, draft_spacing, draft_width
        )
        # Registered here as well, so that what these two learn is trained and saved.
        self.divergence = ForwardKL() if divergence is None else plugin("divergences", divergence)
        self.temperature = temperature
        self.loss = FitLoss(
            self.divergence, temperature, label_weight, average, selection.fraction if selection else 1.0
        )
        self.conditioning_rank = conditioning_rank
        self.online = online
        self.teacher = teacher
        self.chunk_tokens = chunk_tokens
        self.gradient_checkpointing = gradient_checkpointing
        self.measurement = Measurement(list(dict.fromkeys(temperatures)))
        self.runner = SweepRunner(
            self.pair,
            Sweep() if sweep is None else sweep,
            {label: plugin("verifiers", rule) for label, rule in rules.items()},
            CausalLM() if drafter is None else plugin("drafters", drafter),
            FixedLength() if length is None else plugin("lengths", length),
        )
        self.seed = seed
        self.draft: PreTrainedModel | None = None
        self._adopted: list[PreTrainedModel] = []  # a list, to stay out of the module tree until it is needed
        self._reference = None if selection is None else partial(self.pair.reference_model, selection.reference)
        self._writer: OnlineWriter | None = None
        self._cache: TeacherCache | None = None
        self._began = 0.0
        self._number = BatchInStep()
        self.outputs: Outputs | None = None
        self._spread = False
        self._tally: Tally | None = None
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

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
            if self.draft is None:
                self.draft = self.pair.load_draft(self.pair.options.dtype)
            return
        self.pair.use(self.trainer.strategy.root_device, decoding=self.stage == "predict")
        if not self._from_cache:
            self._place_target()
        if self._reference is not None and self.stage == "fit":
            self._reference()
        if self._adopted and self.stage != "fit" and self._needs_draft():
            self.draft = self._adopted.pop()
        if self.draft is not None:
            self.pair.adapt(self.draft)
        training = self.stage == "fit" and self.pair.options.dtype == "auto"
        if self.draft is None and self._needs_draft():
            self.draft = self.pair.load_draft("float32" if training else self.pair.options.dtype)
        if self.draft is not None and self.stage == "fit":
            check_decodable(self.draft)  # before it is trained for hours, not after
            if training:  # it may have been measured before, in its own dtype
                cast_weights(self.draft, torch.float32)
            self._condition(self.draft)
            if self.gradient_checkpointing:
                recompute_activations(self.draft)
            self.draft.train()  # transformers loads in eval mode, and Lightning leaves modes alone
            if self.online is not None:
                self._writer = self._online_writer(self.online, self.draft)
        if self._sharded and self.draft is not None:
            self._refuse_what_cannot_be_sharded(self.draft)
            shard(self.draft, self.trainer)

    def _apply(self, fn: Callable[[Tensor], Tensor], *more: Any) -> Self:
        """Move; of another dtype is the draft in fit alone: elsewhere both models have those of `loading`.

        Lightning rounds a whole module under `bf16-true` and `16-true`, which the target is no part of.
        """
        own = fn if self.stage in ("", "fit") else lambda tensor: tensor.to(fn(tensor).device)
        return super()._apply(own, *more)

    def _condition(self, draft: PreTrainedModel) -> None:
        """Let the draft's weights depend on its temperature, where that is asked for and they do not.

        Raises:
            UserError: they do, by changes of another rank.
        """
        rank = conditioned_rank(draft)
        if self.conditioning_rank and not rank:
            condition(draft, self.conditioning_rank)
        elif self.conditioning_rank not in (0, rank):
            raise UserError(
                f"model.conditioning_rank must be {rank}, that of the draft in {self.pair.draft}, got "
                f"{self.conditioning_rank}: leave it out, or begin with an ordinary draft"
            )

    def _place_target(self) -> None:
        """The target on this process's device: its layers in parts where that is asked for, and nothing is decoded."""
        device = self.trainer.strategy.root_device
        spread = self.pair.options.shard_target and self.stage != "predict" and self.trainer.world_size > 1
        if spread and not self._spread:
            if self.online is not None:
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

    def _refuse_what_cannot_be_sharded(self, draft: PreTrainedModel) -> None:
        for what, wrong in (
            ("model.online", self.online is not None),
            ("a draft that is conditioned on its temperature", is_conditioned(draft)),
            ("a divergence or schedule that learns", bool(self._learned_besides())),
        ):
            if wrong:
                raise UserError(f"{what} expected every process to hold the whole draft, got strategy fsdp2: take ddp")

    def adopt(self, earlier: "DistillationModule") -> None:
        """Take over what a module that ran before has loaded; for runs one after the other in a process.

        Its target always, where both name the same; its draft where it was loaded to measure and not to train.
        """
        self.pair.adopt(earlier.pair)
        named = (self.pair.draft, self.pair.draft_layers, self.pair.options)
        known = (earlier.pair.draft, None, earlier.pair.options)
        if earlier.draft is not None and earlier.stage != "fit" and named == known:
            self._adopted = [earlier.draft]

    def setup(self, stage: str) -> None:
        """Refuse rows that a model was not made for, before anything is trained or measured.

        Raises:
            UserError: the data's rows are longer than a model's context.
        """
        self.outputs = None  # another stage, other models: they are tried again
        data = getattr(self.trainer, "datamodule", None)
        if stage != "predict" and data is not None:
            self.pair.check_rows(data.max_length)
        if stage == "fit" and self.teacher is not None:
            self._take_up_cache(self.teacher, data)

    @property
    def _from_cache(self) -> bool:
        """Whether this stage learns from a cached teacher, without the target."""
        return self.teacher is not None and self.stage == "fit"

    def _take_up_cache(self, options: CachedTeacher, data: Any) -> None:
        """Learn from the cached teacher; nothing is validated without a target."""
        self._cache = open_cache(
            options,
            self.pair,
            data,
            self.divergence,
            self.temperature,
            writes=self.online is not None,
            selects=self._reference is not None,
        )
        self.trainer.limit_val_batches = 0
        rank_zero_info(
            "fit learns from a cached teacher, without a target: validate afterwards, with `tempspec validate`"
        )

    def cache_teacher(self, data: Any, device: torch.device) -> None:
        """Write the cache that `teacher` describes, from where it stopped.

        Args:
            data: the data module whose training rows the target reads.
            device: where to compute.

        Raises:
            UserError: no `teacher`, another cache in its folder, or a disk that is too small.
        """
        if self.teacher is None:
            raise UserError("--cache-teacher needs model.teacher: name at least its folder")
        write_cache(self.teacher, self.pair, data, self.seed, device)

    def _needs_draft(self) -> bool:
        if self.stage != "predict":
            return True
        return self.runner.needs_draft

    @property
    def parameter_ratio(self) -> float | None:
        """The draft's parameters over the target's; None while no draft is loaded, or predict needs none."""
        if self.draft is None or not self.runner.needs_draft:
            return None
        return self.draft.num_parameters() / self.pair.target_model.num_parameters()

    def export_model(self) -> PreTrainedModel:
        """The draft, for `save_pretrained`."""
        assert self.draft is not None
        return self.draft

    @property
    def export_dtype(self) -> torch.dtype:
        """What the draft is saved in."""
        return self.pair.exported_dtype

    def configure_callbacks(self) -> list[pl.Callback]:
        """The curves that every training wants, a stop when the loss is no number, a word where laws are not exact."""
        return lacking(self, TrainingMonitor(), FiniteLoss(), BatchSeed(), PrecisionNotes())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over the draft's parameters, and without decay over what a schedule or a divergence learns."""
        assert self.draft is not None
        draft = [parameter for parameter in self.draft.parameters() if parameter.requires_grad]
        besides = self._learned_besides()
        return optimizers(self, draft, self.optimizer, self.lr_scheduler, besides, pretrained=True)

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

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """The divergence at the scheduled temperature over the response tokens, and how many tokens were read."""
        assert self.draft is not None
        step = self.trainer.global_step
        number = self._number(step)
        key = fold(self.seed, step, number, self.trainer.global_rank)
        # The key makes a resumed run draw what an unbroken one draws.
        moment = Moment(step, self._total_steps(), int(key))
        if self._writer is not None:
            batch = self._written(batch, moment, number, self._writer)
        if is_conditioned(self.draft):
            set_temperature(self.draft, self.loss.draft_temperature(batch, moment))
        sides, reference = self._sides(batch)
        report = self.loss(sides, batch, moment, reference, self.trainer.strategy.reduce)
        self._tally = report.tally if self._tally is None else self._tally + report.tally
        for name, value in self._tally.means().items():  # of the step's batches so far: the last is the step's
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "acceptance"))
        seen_BT = batch["attention_mask"]
        return {"loss": report.loss, "tokens": seen_BT.sum(), "positions": seen_BT.numel()}

    def on_train_start(self) -> None:
        """Start the clock that generation takes its share of; say where the temperatures are not consistent."""
        self._began = time.perf_counter()
        self._number = BatchInStep()
        self._tally = None
        self._begin_reading()
        named = self.optimizer is not None, self.lr_scheduler is not None
        if note := fine_tuning(*named, self.trainer.gradient_clip_val):
            rank_zero_info(note)
        online = self.online
        if online is not None and online.share == 1 and online.high is not None:
            generation = [online.low, online.high]
        else:
            generation = getattr(self.trainer.datamodule, "generation_temperatures", [])  # type: ignore[attr-defined]
        note = inconsistency(
            Span.of(generation),
            Span.of(self.temperature.bounds(self._total_steps()) or ()),
            Span.of(self.measurement.temperatures),
        )
        if note is not None:
            rank_zero_info(note)

    def _online_writer(self, options: OnlineText, draft: PreTrainedModel) -> OnlineWriter:
        if is_conditioned(draft) and options.writer != "target":
            raise UserError("a conditioned draft cannot write its own text yet: set online.writer to target")
        self.pair.options.attention(decoding=True)  # refused now, not when the first text is due
        context = min(context_length(model.config) for model in (self.pair.target_model, draft))
        return OnlineWriter(options, self.pair.vocabulary, self.pair.stop_ids, context)

    def _written(self, batch: Batch, moment: Moment, number: int, writer: OnlineWriter) -> Batch:
        """The batch with rows that the draft or the target writes now; logs their share of the time."""
        assert self.draft is not None
        by = writer.options.writer
        author = self.draft if by == "draft" else self.pair.target_model
        other = self.draft if by == "both" else None
        with self.pair.decode_with(*(model for model in (author, other) if model is not None)):
            batch = writer(batch, author, moment.step, moment.key, other, number)
        elapsed = time.perf_counter() - self._began
        self.log("train/generation_share", min(writer.seconds / max(elapsed, 1e-9), 1.0))
        return batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the text that was written last, of all ranks: it may be used again before the next is written."""
        if self._writer is not None and self._writer.options.every > 1:
            checkpoint["online_text"] = of_all(self._writer.written)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the weights of a conditioned draft; take up the text that was written last.

        Outside of fit the draft becomes what its exported folder holds, whose weights are rounded.

        Raises:
            UserError: another number of processes wrote it, or the draft is conditioned by changes of another rank.
        """
        if self.draft is not None:
            self._condition(self.draft)
            if self.stage != "fit":
                self._round(checkpoint["state_dict"], self.draft)
        texts = checkpoint.get("online_text")
        if self._writer is None or texts is None:
            return
        if len(texts) != self.trainer.world_size:
            raise UserError(
                f"expected the {len(texts)} processes that wrote the checkpoint's text, got {self.trainer.world_size}: "
                "resume with as many"
            )
        self._writer.written = texts[self.trainer.global_rank]

    def _round(self, state: dict[str, Tensor], draft: PreTrainedModel) -> None:
        """A checkpoint's weights, and the draft's dtype, as if they came from the exported folder."""
        dtype = self.export_dtype
        for name in (f"draft.{name}" for name, _ in weights_of(draft)):
            if name in state:
                state[name] = state[name].to(dtype)
        if self.pair.options.dtype == "auto" and draft.dtype != dtype:
            cast_weights(draft, dtype)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell the divergence how the step went."""
        assert self._tally is not None
        loss, self._tally = self._tally.means()["loss"], None
        self.divergence.observe(loss, LossContext(self.trainer.global_step, self._total_steps()))

    def _sides(self, batch: Batch) -> tuple[Sides, Sides | None]:
        """The target's outputs with the draft's, and with the reference's where tokens are selected."""
        assert self.draft is not None
        assert self.outputs is not None
        outputs, keep_BT = self.outputs, response(batch)
        if self._cache is not None:
            teacher = self._cache(batch["row"], batch["weight"])
            draft = outputs.of(self.draft, batch, keep_BT)
            return Cached(teacher, draft, self._cache.vocabulary, self.chunk_tokens), None
        with torch.no_grad():
            target = outputs.of(self.pair.target_model, batch, keep_BT)
            reference = None if self._reference is None else outputs.of(self._reference(), batch, keep_BT)
        draft = outputs.of(self.draft, batch, keep_BT)
        return outputs.join(target, draft), None if reference is None else outputs.join(target, reference)

    def _begin_reading(self) -> None:
        """Read models in chunks where every head is linear and nobody asked for whole logits; tried before any step.

        Raises:
            UserError: the rows hold ids that the target has no embedding for.
        """
        self._check_ids()
        if self.outputs is not None:
            return
        assert self.draft is not None
        models = [self.draft]
        if self._reference is not None and self.stage == "fit":
            models.append(self._reference())
        if not self._from_cache:
            models.append(self.pair.target_model)
        make_ids_readable(self.pair, models)
        # A sharded head is whole in its own forward alone.
        whole = self.chunk_tokens == 0 or self._sharded or not linear_heads(models)
        reading = reading_of(models, getattr(self.trainer, "datamodule", None), self._cache)
        self.outputs = Outputs(self.pair, self.chunk_tokens, whole, reading)

    def _check_ids(self) -> None:
        if self._from_cache:
            assert self.draft is not None
            assert self._cache is not None
            if (ids := largest_id(self.draft) + 1) < self._cache.vocabulary:
                raise UserError(
                    f"a cached teacher needs a draft with all of its {self._cache.vocabulary} ids, got one with {ids}: "
                    "train without model.teacher, or take another draft"
                )
            return
        trainer, data = self.trainer, getattr(self.trainer, "datamodule", None)
        for loaders, names in (
            (trainer.train_dataloader, ["train"]),
            (trainer.val_dataloaders, getattr(data, "validation_names", [])),
            (trainer.test_dataloaders, getattr(data, "test_names", [])),
        ):
            check_ids(self.pair, loaded_sets(loaders, names))

    def _total_steps(self) -> int | None:
        """The optimiser steps of the run, by its steps and its epochs; None for a run without an end."""
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if 0 <= steps < float("inf") else None

    # -- validate, test -----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start an empty grid for each validation set."""
        self._begin_reading()
        self.measurement.start(self.trainer.datamodule.validation_names, self.device)  # type: ignore[attr-defined]
        if self.stage == "validate" and self.runner.sweep.fitted:
            sweep = self.runner.sweep
            self.measurement.start_fit(sweep.target_temperatures, sweep.fitted_on, sweep.truncation, self.device)

    def on_test_epoch_start(self) -> None:
        """Start an empty grid for each test set."""
        self._begin_reading()
        self.measurement.start(self.trainer.datamodule.test_names, self.device)  # type: ignore[attr-defined]

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """One forward of each model gives the acceptance at every pair of temperatures."""
        self._measure(batch)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """As `validation_step`, on the test sets."""
        self._measure(batch)

    def _measure(self, batch: Batch) -> None:
        assert self.draft is not None
        assert self.outputs is not None
        draft, outputs, keep_BT = self.draft, self.outputs, response(batch)
        target = outputs.of(self.pair.target_model, batch, keep_BT)

        def sides() -> Heads | Logits:
            return outputs.join(target, outputs.of(draft, batch, keep_BT))

        self.measurement.count(batch, draft, sides)

    def on_validation_epoch_end(self) -> None:
        """Log the acceptance of every set at equal temperatures, and its mean, which checkpoints follow."""
        self._log_grids("val")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._log_grids("test")

    def _log_grids(self, prefix: str) -> None:
        means = []
        for name in self.measurement.grids:
            same = self.measurement.diagonal(name)
            means.append(sum(same.values()) / len(same))
            for temperature, value in same.items():
                self.log(f"{prefix}/{name}/acceptance_T{temperature:g}", value, rank_zero_only=True)
        self.log(f"{prefix}/acceptance", sum(means) / max(len(means), 1), prog_bar=True)

    # -- predict, generate --------------------------------------------------------------------------------------------

    def begin_generation(self) -> None:
        """Let the next predict write the target's own text: no draft, the sweep's generation temperatures."""
        self.runner.generating = True

    def work(self, prompt_sets: PromptSets) -> list[Work]:
        """What is left to decode, pass by pass; the data module calls it. See `SweepRunner.plan`."""
        trainer = self.trainer
        checkpoint = str(trainer.ckpt_path) if trainer.ckpt_path else None
        folder = stage_folder(trainer)
        return self.runner.plan(prompt_sets, folder, rank=trainer.global_rank, checkpoint=checkpoint)

    def on_predict_start(self) -> None:
        """Decode without dropout; say where rows outgrow the draft; measure step times where its length needs them."""
        if self.draft is not None:
            self.draft.eval()
        self.runner.check_context(self.draft)
        self.runner.measure_steps(self.draft, self.trainer.global_rank)

    def predict_step(self, batch: Work, batch_index: int) -> int:
        """Decode a pass and write its rows; returns the exit code that a process was asked to stop with, or 0."""
        code = self.runner.decode(batch, self.draft, stop=lambda: stop_code(self.trainer))
        if code:
            ask_stop(self.trainer, code)
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
