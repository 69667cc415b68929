"""The LightningModule of the project: distils a draft, measures it, decodes with it (floor 5).

One YAML describes one experiment: fit distils, validate and test give the analytic acceptance at every pair of
temperatures, predict decodes, generate writes the target's own text.

Axes: B batch, T positions, N the batch's response tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempspec.core.acceptance import acceptance_grid, agreement_grid, argmax_acceptance, entropy
from tempspec.core.divergences import acceptance
from tempspec.core.noise import fold
from tempspec.core.reduce import masked_sum_and_count
from tempspec.decoding.sweep import Sweep, WorkItem
from tempspec.errors import UserError
from tempspec.interfaces import (
    Divergence,
    Drafter,
    DraftLength,
    ScheduleContext,
    TemperatureSchedule,
    Verifier,
)
from tempspec.metrics.acceptance_grid import AcceptanceGrid
from tempspec.metrics.rows import Row
from tempspec.models.loading import ModelOptions
from tempspec.modules.callbacks import FiniteLoss, TrainingMonitor
from tempspec.modules.optim import optimizers
from tempspec.modules.pair import Pair, common_ids
from tempspec.modules.prediction import PromptSets, SweepRunner
from tempspec.plugins.divergences import ForwardKL
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.schedules import Constant
from tempspec.plugins.verifiers import TokenwiseRejection

Batch = Mapping[str, Tensor]


class DistillationModule(pl.LightningModule):
    """Distils a draft from a target, and measures what speculative decoding gains with it.

    Args:
        target: folder or hub name of the target; it is frozen.
        draft: folder or hub name of the draft.
        draft_layers: make the draft from the target's first N layers instead of loading one.
        loading: dtype, attention implementation, revisions. A draft in training is float32 unless a dtype is named.
        divergence: what fit minimises; ForwardKL by default.
        temperature: the loss temperature, a number or a schedule; 1 by default.
        label_weight: share of the text's own next token in the loss (cross-entropy at temperature 1), in [0, 1].
        optimizer: any of torch.optim; AdamW(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1) by default.
        lr_scheduler: a learning-rate schedule, stepped with the optimiser; WarmupCosine by default.
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
        loading: ModelOptions | None = None,
        divergence: Divergence | None = None,
        temperature: TemperatureSchedule | float | None = None,
        label_weight: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        validation_temperatures: list[float] | None = None,
        verifiers: dict[str, Verifier] | None = None,
        drafter: Drafter | None = None,
        length: DraftLength | None = None,
        sweep: Sweep | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_weight <= 1:
            raise UserError(f"label_weight must be in [0, 1], got {label_weight}")
        temperatures = [0.0, 0.5, 1.0, 1.5] if validation_temperatures is None else validation_temperatures
        if not temperatures or min(temperatures) < 0:
            raise UserError(f"validation_temperatures must be 0 or more, at least one, got {temperatures}")
        if not isinstance(temperature, TemperatureSchedule):
            temperature = Constant(1.0 if temperature is None else temperature)
        self.pair = Pair(target, draft, draft_layers, ModelOptions() if loading is None else loading)
        self.divergence = ForwardKL() if divergence is None else divergence
        self.temperature = temperature
        self.label_weight = label_weight
        self.validation_temperatures = list(dict.fromkeys(temperatures))
        self.runner = SweepRunner(
            self.pair,
            Sweep() if sweep is None else sweep,
            {"token": TokenwiseRejection()} if verifiers is None else verifiers,
            CausalLM() if drafter is None else drafter,
            FixedLength() if length is None else length,
        )
        self.seed = seed
        self.draft: PreTrainedModel | None = None
        self.grids: dict[str, AcceptanceGrid] = {}
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler

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
        if self._trainer is None:
            if self.draft is None:
                self.draft = self.pair.load_draft(self.pair.options.dtype)
            return
        self.pair.target_model.to(self.trainer.strategy.root_device)
        if self.draft is None and self._needs_draft():
            training = self.stage == "fit" and self.pair.options.dtype == "auto"
            self.draft = self.pair.load_draft("float32" if training else self.pair.options.dtype)
        if self.draft is not None and self.stage == "fit":
            self.draft.train()  # transformers loads in eval mode, and Lightning leaves modes alone

    def _needs_draft(self) -> bool:
        if self.stage != "predict":
            return True
        return self.runner.needs_draft

    @property
    def parameter_ratio(self) -> float | None:
        """The draft's parameters over the target's; None while no draft is loaded."""
        if self.draft is None:
            return None
        return self.draft.num_parameters() / self.pair.target_model.num_parameters()

    def export_model(self) -> PreTrainedModel:
        """The draft, for `save_pretrained`."""
        assert self.draft is not None
        return self.draft

    def configure_callbacks(self) -> list[pl.Callback]:
        """The curves that every training wants, and a stop when the loss is no longer a number."""
        return [TrainingMonitor(), FiniteLoss()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over the draft's parameters alone."""
        assert self.draft is not None
        parameters = [parameter for parameter in self.draft.parameters() if parameter.requires_grad]
        return optimizers(self, parameters, self._optimizer, self._lr_scheduler)

    # -- fit ----------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The token-weighted divergence at the scheduled temperature over the response tokens."""
        keep_BT = _response(batch)
        logits_p_NV, logits_q_NV = self._logits(batch, keep_BT)
        target_N, draft_N = self._temperatures(batch, batch_index, keep_BT)
        logp_NV = (logits_p_NV.float() / target_N[:, None]).log_softmax(-1)
        logq_NV = (logits_q_NV.float() / draft_N[:, None]).log_softmax(-1)
        loss_N = self.divergence(logp_NV[None], logq_NV[None], draft_N[None])[0]
        if self.label_weight:
            label_N = batch["input_ids"][:, 1:][keep_BT]
            hard_N = torch.nn.functional.cross_entropy(logits_q_NV.float(), label_N, reduction="none")
            loss_N = (1 - self.label_weight) * loss_N + self.label_weight * hard_N
        weight_N = batch["weight"][:, None].expand_as(keep_BT)[keep_BT]
        total, count = masked_sum_and_count(loss_N, weight_N > 0, weight_N)
        loss = total / count.clamp(min=1)
        self._log_step(loss, logp_NV, logq_NV, draft_N)
        return loss

    def _logits(self, batch: Batch, keep_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Target's and draft's logits that predict the kept tokens, over the real ids that both have, `[N, V]`."""
        assert self.draft is not None
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        with torch.no_grad():
            logits_p_NV = self.pair.target_model(**inputs).logits[:, :-1][keep_BT]
        logits_q_NV = self.draft(**inputs).logits[:, :-1][keep_BT]
        return common_ids(logits_p_NV, logits_q_NV, self.pair.vocabulary)

    def _temperatures(self, batch: Batch, batch_index: int, keep_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The loss temperatures of target and draft at each kept token, `[N]` each.

        The generator is seeded by (seed, step, batch, rank): a resumed run draws what an unbroken one draws.
        """
        key = fold(self.seed, self.trainer.global_step, batch_index, self.trainer.global_rank)
        context = ScheduleContext(
            step=self.trainer.global_step,
            total_steps=self._total_steps(),
            batch_size=len(keep_BT),
            generator=torch.Generator().manual_seed(int(key)),
            generation_temperature_B=batch["generation_temperature"],
        )
        temperatures = self.temperature(context)
        target, draft = (
            temperature.to(keep_BT.device).expand(keep_BT.shape)[keep_BT]
            for temperature in (temperatures.target, temperatures.draft)
        )
        return target, draft

    def _total_steps(self) -> int | None:
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if steps != float("inf") else None

    def _log_step(self, loss: Tensor, logp_NV: Tensor, logq_NV: Tensor, draft_N: Tensor) -> None:
        with torch.no_grad():
            overlap = acceptance(logp_NV, logq_NV).mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/temperature", draft_N.mean())
        self.log("train/acceptance", overlap, prog_bar=True)

    # -- validate, test -----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start an empty grid for each validation set."""
        self._start_grids(self.trainer.datamodule.validation_names)  # type: ignore[attr-defined]

    def on_test_epoch_start(self) -> None:
        """Start an empty grid for each test set."""
        self._start_grids(self.trainer.datamodule.test_names)  # type: ignore[attr-defined]

    def _start_grids(self, names: Sequence[str]) -> None:
        temperatures = self.validation_temperatures
        self.grids = {name: AcceptanceGrid(temperatures, temperatures).to(self.device) for name in names}

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """One forward of each model gives the acceptance at every pair of temperatures."""
        self._measure(batch)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """As `validation_step`, on the test sets."""
        self._measure(batch)

    def _measure(self, batch: Batch) -> None:
        keep_BT = _response(batch)
        logits_p_NV, logits_q_NV = self._logits(batch, keep_BT)
        temperatures = self.validation_temperatures
        alpha_NTT = acceptance_grid(logits_p_NV, logits_q_NV, temperatures, temperatures)
        match_NTT = agreement_grid(logits_p_NV, logits_q_NV, temperatures, temperatures)
        match_NT = match_NTT.diagonal(dim1=1, dim2=2)
        argmax_NT = argmax_acceptance(logits_p_NV, logits_q_NV, temperatures)
        entropy_NT = entropy(logits_p_NV, temperatures)
        key_N, weight_N, set_N = (
            batch[name][:, None].expand_as(keep_BT)[keep_BT] for name in ("key", "weight", "set_index")
        )
        for index, grid in enumerate(self.grids.values()):
            here = set_N == index
            if here.any():
                grid.update(
                    alpha_NTT[here],
                    argmax_NT[here],
                    match_NT[here],
                    entropy_NT[here],
                    key_N[here],
                    weight_N[here],
                )

    def on_validation_epoch_end(self) -> None:
        """Log the acceptance of every set at equal temperatures, and its mean, which checkpoints follow."""
        self._log_grids("val")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._log_grids("test")

    def _log_grids(self, prefix: str) -> None:
        diagonals = []
        for name, grid in self.grids.items():
            found = grid.grid().acceptance
            same = [found[temperature, temperature].value for temperature in self.validation_temperatures]
            diagonals.append(sum(same) / len(same))
            for temperature, value in zip(self.validation_temperatures, same, strict=True):
                self.log(f"{prefix}/{name}/acceptance_T{temperature:g}", value, rank_zero_only=True)
        self.log(f"{prefix}/acceptance", sum(diagonals) / max(len(diagonals), 1), prog_bar=True)

    # -- predict, generate --------------------------------------------------------------------------------------------

    def begin_generation(self) -> None:
        """Let the next predict write the target's own text: no draft, the sweep's generation temperatures."""
        self.runner.generating = True

    def work(self, prompt_sets: PromptSets) -> list[list[WorkItem]]:
        """What is left to decode, in batches; the data module calls it. See `SweepRunner.plan`."""
        trainer = self.trainer
        checkpoint = str(trainer.ckpt_path) if trainer.ckpt_path else None
        return self.runner.plan(prompt_sets, trainer.default_root_dir, rank=trainer.global_rank, checkpoint=checkpoint)

    def on_predict_start(self) -> None:
        """Decode without dropout."""
        if self.draft is not None:
            self.draft.eval()

    def predict_step(self, batch: Mapping[str, Any], batch_index: int) -> list[Row]:
        """Decode one batch of items and write its rows; a filler batch only keeps ranks in step."""
        return [] if batch["filler"] else self.runner.decode(batch["items"], self.draft)


def _response(batch: Batch) -> Tensor:
    """Which logits count, bool `[B, T-1]`: entry t predicts token t + 1."""
    return batch["loss_mask"][:, 1:] & (batch["weight"][:, None] > 0)
