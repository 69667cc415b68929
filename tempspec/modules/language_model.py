"""Training a causal language model on text alone: a small target, or a draft without distillation (floor 5).

Axes: B batch, T positions, V vocabulary, S validation sets.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from tempspec.core.reduce import or_one
from tempspec.errors import UserError
from tempspec.interfaces import Exact
from tempspec.models.loading import DType, cast_weights, load_config, load_model, load_tokenizer, save_model
from tempspec.models.ragged import check_rows
from tempspec.models.recomputing import recompute_activations
from tempspec.modules.callbacks import BatchSeed, FiniteLoss, TrainingMonitor, lacking
from tempspec.modules.fit.optim import CLIP, fine_tuning, optimizers
from tempspec.modules.fit.text_loss import TextLoss, text_loss
from tempspec.modules.outputs import Batch, LogitSource, linear_heads, reading_of
from tempspec.modules.processes import all_reduced

__all__ = ["LanguageModelModule", "ModelShape", "NatsPerToken"]


@dataclass
class ModelShape:
    """The sizes of a new model of the Llama architecture.

    Attributes:
        hidden_size: width; a multiple of `heads`.
        layers: blocks.
        heads: attention heads.
        kv_heads: key-value heads, a divisor of `heads`; None is `heads`.
        intermediate_size: width of the gated feed-forward layer; None is 8/3 of the hidden size, rounded up to 32.
        max_position_embeddings: the context length.
        tie_word_embeddings: one matrix for embedding and head.
    """

    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide.

        Raises:
            ValueError: a size is not positive, or heads do not divide.
        """
        sizes = {"hidden_size": self.hidden_size, "layers": self.layers, "heads": self.heads}
        for name, size in (sizes | {"max_position_embeddings": self.max_position_embeddings}).items():
            if size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size}")
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be an even multiple of heads = {self.heads}, got {self.hidden_size}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ValueError(f"kv_heads must divide heads = {self.heads}, got {self.kv_heads}")

    def build(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """A freshly initialised model with a row for every id of the tokenizer."""
        config = LlamaConfig(
            vocab_size=max(tokenizer.get_vocab().values()) + 1,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or -(-self.hidden_size * 8 // 96) * 32,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            max_position_embeddings=self.max_position_embeddings,
            tie_word_embeddings=self.tie_word_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


class NatsPerToken(Exact, Metric):
    """Cross-entropy per token of every validation set, token-weighted: sums and counts, `[S]` each.

    Args:
        sets: S.

    >>> metric = NatsPerToken(2)
    >>> metric.update(torch.tensor([[1.0, 2.0], [4.0, 0.0]]), torch.tensor([[1, 1], [1, 0]]), torch.tensor([0, 1]))
    >>> metric.compute()
    tensor([1.5000, 4.0000, 2.3333])
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, sets: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nats_S: Tensor
        self.tokens_S: Tensor
        self.add_state("nats_S", torch.zeros(sets, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens_S", torch.zeros(sets, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nats_BT: Tensor, weight_BT: Tensor, set_index_B: Tensor) -> None:
        """Add a batch; positions of weight 0 do not count."""
        self.nats_S.index_add_(0, set_index_B, (nats_BT * weight_BT).sum(1).to(self.nats_S.dtype))
        self.tokens_S.index_add_(0, set_index_B, weight_BT.sum(1).to(self.tokens_S.dtype))

    def compute(self) -> Tensor:
        """Nats per token of every set and, last, over all of them, float32 `[S + 1]`; NaN for a set without tokens."""
        nats, tokens = (torch.cat([state_S, state_S.sum()[None]]) for state_S in (self.nats_S, self.tokens_S))
        return (nats / tokens).float()


class LanguageModelModule(LightningModule):
    """Trains a causal language model by next-token cross-entropy.

    Give the sizes of a new model (`shape`) or a model to continue from (`pretrained`), not both. The loss of a batch is
    the mean over its target tokens (`loss_mask`), so that short rows weigh less than long ones; batches that are
    accumulated count alike.

    Logs `train/loss`, the mean over the step's tokens; `val/NAME/nats_per_token` for every validation set NAME, and
    `val/nats_per_token` over all.

    Args:
        tokenizer: folder or hub name of the tokenizer; None takes that of `pretrained`.
        shape: sizes of a new Llama; the defaults if neither this nor `pretrained` is given.
        pretrained: folder or hub name of a model to continue from.
        dtype: of the weights in training; train in float32 and set `trainer.precision: bf16-mixed` for speed.
        export_dtype: of the weights that are saved; `auto` is what `pretrained` came in, float32 for a new model.
        attn_implementation: the attention implementation, by transformers' name; null leaves it to the model.
        chunk_tokens: tokens whose logits exist at a time; null chooses, 0 computes whole logits.
        gradient_checkpointing: keep only the input of each layer in fit, and compute the rest again in the backward
            pass: a third more time for a fraction of the activations.
        optimizer: the optimiser, whose weight decay is then of all parameters; if not given AdamW(lr=1e-3, betas=(0.9,
            0.95), weight_decay=0.1) with a decay of matrices only, for `pretrained` with lr=1e-4. Gradients of
            `pretrained` are clipped at 1 unless the trainer's gradient_clip_val says otherwise; 0 is no clipping.
        lr_scheduler: the learning-rate schedule, stepped every optimiser step; if not given WarmupCosine, for
            `pretrained` with 5% of the steps to warm up.

    Raises:
        UserError: no tokenizer, both or neither kind of model, or chunks of fewer than no tokens.
    """

    export_name = "model"
    """The folder under the run's fit folder that the trained model is written to."""

    def __init__(
        self,
        tokenizer: str | None = None,
        shape: ModelShape | None = None,
        pretrained: str | None = None,
        dtype: DType = "float32",
        export_dtype: DType = "auto",
        attn_implementation: str | None = None,
        chunk_tokens: int | None = None,
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if shape is not None and pretrained is not None:
            raise UserError("give model.shape (a new model) or model.pretrained (one to continue from), not both")
        source = tokenizer or pretrained
        if source is None:
            raise UserError("a new model needs model.tokenizer: a folder or hub name that holds a tokenizer")
        if chunk_tokens is not None and chunk_tokens < 0:
            raise UserError(f"chunk_tokens must be 0 (whole logits) or more, got {chunk_tokens}")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.shape = shape or ModelShape()
        self.pretrained = pretrained
        self.dtype_name: DType = dtype
        self.attn_implementation = attn_implementation
        self.chunk_tokens = chunk_tokens
        self.gradient_checkpointing = gradient_checkpointing
        self._export_dtype: torch.dtype = torch.float32 if export_dtype == "auto" else getattr(torch, export_dtype)
        self._keeps_dtype = export_dtype == "auto"
        self.tokenizer = load_tokenizer(source)
        self.model: PreTrainedModel | None = None
        self.set_names: tuple[str, ...] = ()
        self._source: LogitSource | None = None
        self._sums: Tensor | None = None  # nats and weights of the step's batches so far

    # -- building ------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build or load the model, once, in train mode."""
        if self.model is None:
            self.model = self._load() if self.pretrained is not None else self.shape.build(self.tokenizer)
            if self.gradient_checkpointing:
                recompute_activations(self.model)
            self.model.train()

    def _load(self) -> PreTrainedModel:
        """The model to continue from."""
        assert self.pretrained is not None
        model = load_model(self.pretrained, attn_implementation=self.attn_implementation)
        if self._keeps_dtype:
            self._export_dtype = model.dtype
        rows, ids = model.get_input_embeddings().weight.shape[0], max(self.tokenizer.get_vocab().values()) + 1
        if ids > rows:
            raise UserError(
                f"the tokenizer has {ids} ids, but {self.pretrained} only {rows}: use the model's own tokenizer"
            )
        return model if self.dtype_name == "auto" else cast_weights(model, getattr(torch, self.dtype_name))

    def setup(self, stage: str) -> None:
        """Learn the evaluation sets' names from the data module; refuse rows that the model was not made for.

        Raises:
            UserError: see `tempspec.models.ragged.check_rows`.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.pretrained is not None:
            check_rows(self.pretrained, load_config(self.pretrained), data.max_length)
        self.set_names = tuple(data.test_names if stage == "test" else data.validation_names)
        self.nats_per_token = NatsPerToken(len(self.set_names))

    def configure_callbacks(self) -> list[Callback]:
        """What every training wants: the usual curves, and a stop when the loss is no longer a number."""
        return lacking(self, TrainingMonitor(), FiniteLoss(late=True), BatchSeed())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The configured optimiser and schedule over all parameters."""
        before = self.pretrained is not None
        return optimizers(self, self.parameters(), self.optimizer, self.lr_scheduler, pretrained=before)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; where it says nothing, as a model needs it that was trained before."""
        if gradient_clip_val is None and self.pretrained is not None:
            gradient_clip_val = CLIP
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _read(self, batch: Batch) -> TextLoss:
        """The text's own tokens under the model; no more logits exist at a time than a chunk has."""
        assert self.model is not None
        if self._source is None:
            reading = reading_of([self.model], self._trainer and getattr(self._trainer, "datamodule", None))
            rows = len(self.model.get_output_embeddings().weight)
            whole = self.chunk_tokens == 0 or not linear_heads([self.model])
            self._source = LogitSource(rows, self.chunk_tokens, whole, reading)
        return text_loss(self.model, batch, self._source)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The token-weighted cross-entropy of the batch."""
        found = self._read(batch)
        # Of all processes: gradients are averaged over them, and one with fewer tokens must count less.
        sums = all_reduced(torch.stack([found.total.detach(), found.weight_BT.sum()]))
        self._sums = sums if self._sums is None else self._sums + sums
        rows = len(batch["input_ids"])
        self.log("train/loss", self._sums[0] / or_one(self._sums[1]), prog_bar=True, batch_size=rows)
        return found.total / or_one(sums[1])

    def on_train_start(self) -> None:
        """Begin a step; say which defaults are those of fine-tuning."""
        self._sums = None
        named = self.optimizer is not None, self.lr_scheduler is not None
        if self.pretrained is not None and (note := fine_tuning(*named, self.trainer.gradient_clip_val)):
            rank_zero_info(note)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Begin another step."""
        self._sums = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the batch's nats and tokens, by set."""
        found = self._read(batch)
        self.nats_per_token.update(found.nats_BT, found.weight_BT, batch["set_index"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log nats per token of every set and over all."""
        self._log_nats("val")

    def on_test_epoch_end(self) -> None:
        """Log nats per token of every set and over all."""
        self._log_nats("test")

    def _log_nats(self, prefix: str) -> None:
        """Log the finished epoch and forget it."""
        *nats_S, pooled = self.nats_per_token.compute()
        values = {f"{prefix}/{name}/nats_per_token": nats for name, nats in zip(self.set_names, nats_S, strict=True)}
        self.log_dict(values, sync_dist=True)
        self.log(f"{prefix}/nats_per_token", pooled, prog_bar=True, sync_dist=True)
        self.nats_per_token.reset()

    # -- export --------------------------------------------------------------------------------------------------------

    def export_model(self) -> PreTrainedModel:
        """The model as `transformers` knows it."""
        assert self.model is not None
        return self.model

    def save_export(self, folder: Path, state: dict[str, Any] | None) -> None:
        """Write a folder that `from_pretrained` reads; see `Exportable.save_export`."""
        save_model(self.export_model(), self.tokenizer, folder, state, self._export_dtype)
