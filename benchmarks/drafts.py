"""One draft, distilled and measured: what the runs of two studies do.

Models, rows, losses, schedules and acceptance are the package's. The loop is this file's: at a quarter of a thousand
tokens a step, what Lightning does besides is most of a step. The target's logits are the same in every run, so each
row's are computed once.

Axes: B batch, T positions, V vocabulary, N kept tokens, A target and D draft temperatures.
"""

from collections.abc import Iterator
from typing import Any

import torch
from texts import LENGTH, Texts
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from tempspec.core.acceptance import acceptance_grid
from tempspec.core.noise import fold
from tempspec.data.batches import Batch
from tempspec.data.module import TextDataModule
from tempspec.interfaces import LossContext
from tempspec.metrics.bootstrap import bootstrap_compute, bootstrap_update
from tempspec.models.conditioning import condition, is_conditioned, set_temperature
from tempspec.models.loading import ModelOptions
from tempspec.models.pair import Pair
from tempspec.modules.fit.loss import FitLoss, Moment
from tempspec.modules.fit.optim import WarmupCosine
from tempspec.modules.head_steps import DraftStep
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import LogitPairs, response
from tempspec.plugins import divergences, schedules

BATCH = 2
LEARNING_RATE, WARMUP = 3e-3, 20
ROWS_AT_ONCE = 64
"""Rows of a forward pass without gradients."""


class Rows:
    """All rows of a text as one batch, and the target's logits of those that were asked for.

    Args:
        batch: the rows.
        target: the model whose logits belong to them.
    """

    def __init__(self, batch: Batch, target: PreTrainedModel) -> None:
        self.batch, self.target = batch, target
        self.known_B = torch.zeros(len(self), dtype=torch.bool)
        self.logits_BTV = torch.empty(*batch["input_ids"].shape, target.config.vocab_size)

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def part(self, row_B: Tensor) -> tuple[Batch, Tensor]:
        """Some of the rows, and the target's logits at their response tokens, `[N, V]`."""
        fresh_B = row_B[~self.known_B[row_B]]
        if len(fresh_B):
            self.logits_BTV[fresh_B] = logits(self.target, self.batch["input_ids"][fresh_B])
            self.known_B[fresh_B] = True
        batch = {name: value[row_B] for name, value in self.batch.items()}
        return batch, self.logits_BTV[row_B][:, :-1][response(batch)]

    def parts(self) -> Iterator[tuple[Batch, Tensor]]:
        """All rows in order, some at a time."""
        for row_B in torch.arange(len(self)).split(ROWS_AT_ONCE):
            yield self.part(row_B)


class Distillery:
    """Makes drafts from one target and measures them.

    Args:
        texts: what they are trained and measured on.
        temperatures: target temperatures of a measurement.
        candidates: draft temperatures of a measurement.
    """

    def __init__(self, texts: Texts, temperatures: list[float], candidates: list[float]) -> None:
        self.texts, self.temperatures, self.candidates = texts, temperatures, candidates
        self.pair = Pair(texts.target, None, 1, ModelOptions())
        self._training: dict[str, Rows] = {}
        self._measured: dict[str, Rows] = {}

    def distil(
        self, divergence: dict[str, Any], temperature: dict[str, Any], text: str, steps: int, seed: int, rank: int
    ) -> PreTrainedModel:
        """The target's first layer, after some steps.

        Args:
            divergence: class name and options.
            temperature: class name and options of the schedule.
            text: see `Texts.training`.
            steps: of the optimiser.
            seed: of the rows' order and of random temperatures.
            rank: of a conditioned draft; 0 for an ordinary one.
        """
        torch.manual_seed(seed)
        draft = self.pair.load_draft("float32").train()
        if rank:
            condition(draft, rank)
        loss = FitLoss(plugin(divergences, divergence), plugin(schedules, temperature))
        learned = list(draft.parameters())
        optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        rate = WarmupCosine(optimizer, warmup=WARMUP, total_steps=steps)
        rows = self._rows(text)
        for step, row_B in enumerate(_order(len(rows), steps, seed)):
            batch, logits_p_NV = rows.part(row_B)
            moment = Moment(step, steps, int(fold(seed, step, 0, 0)))
            if rank:
                set_temperature(draft, loss.draft_temperature(batch, moment))
            kept = Kept.of(response(batch))
            logits_q_NV = kept.outputs(logits(draft, batch["input_ids"]))
            real = self.pair.vocabulary
            report = loss([DraftStep(batch, LogitPairs(logits_p_NV, logits_q_NV, real), kept)], moment)
            optimizer.zero_grad()
            report.loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            rate.step()
            loss.divergence.observe(report.sums[0].means()["loss"], LossContext(step, steps))
        return draft.eval()

    @torch.no_grad()
    def acceptance(self, draft: PreTrainedModel, name: str, temperatures: list[float]) -> Tensor:
        """Acceptance on a validation set: value, low, high and number of prompts, `[A, D, 4]`."""
        sums = None
        for batch, logits_p_NV in self._validation()[name].parts():
            keep_BT = response(batch)
            key_N = batch["key"][:, None].expand_as(keep_BT)[keep_BT]
            grid_NAD = torch.cat(
                [
                    acceptance_grid(logits_p_NV, logits_q_NV, temperatures, columns)
                    for columns, logits_q_NV in self._columns(draft, batch, keep_BT)
                ],
                -1,
            )
            value_NS = grid_NAD.flatten(1)
            found = bootstrap_update(value_NS, torch.ones_like(value_NS), key_N)
            sums = found if sums is None else sums + found
        return bootstrap_compute(sums).unflatten(0, (len(temperatures), len(self.candidates)))

    def _columns(self, draft: PreTrainedModel, batch: Batch, keep_BT: Tensor) -> Iterator[tuple[list[float], Tensor]]:
        """The draft's logits, and the draft temperatures that they serve: a conditioned draft has some for each."""
        if not is_conditioned(draft):
            yield self.candidates, logits(draft, batch["input_ids"])[:, :-1][keep_BT]
            return
        for temperature in self.candidates:
            set_temperature(draft, temperature)
            yield [temperature], logits(draft, batch["input_ids"])[:, :-1][keep_BT]

    def _rows(self, text: str) -> Rows:
        if text not in self._training:
            data = self._data(train=self.texts.training(text), validation_fraction=0.0)
            data.setup("fit")
            self._training[text] = Rows(_whole(data.in_order(0)), self.pair.target_model)
        return self._training[text]

    def _validation(self) -> dict[str, Rows]:
        if not self._measured:
            data = self._data(validation=self.texts.measured(self.temperatures), pack=False)
            data.setup("validate")
            (loader,) = data.val_dataloader()
            whole = _whole(loader)
            for index, name in enumerate(data.validation_names):
                here = whole["set_index"] == index
                own = {key: value[here] for key, value in whole.items()}
                self._measured[name] = Rows(own, self.pair.target_model)
        return self._measured

    def _data(self, **options: Any) -> TextDataModule:
        return TextDataModule(
            tokenizer=self.texts.target, collapse_whitespace=True, max_length=LENGTH, batch_size=10**6, **options
        )


def logits(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """A model's logits of rows padded on the right: nothing looks ahead, so that no mask is needed, `[B, T, V]`."""
    return model(input_ids=ids_BT, use_cache=False).logits


def plugin(module: Any, spec: dict[str, Any]) -> Any:
    """An instance of a built-in, from its class name and options."""
    return getattr(module, spec["class"])(**{name: value for name, value in spec.items() if name != "class"})


def _order(rows: int, steps: int, seed: int) -> Iterator[Tensor]:
    """The rows of each step: every row once, then anew in another order."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(left) < BATCH:
            left = torch.cat([left, torch.randperm(rows, generator=generator)])
        now, left = left[:BATCH], left[BATCH:]
        yield now


def _whole(loader: DataLoader[Any]) -> Batch:
    """The one batch of a loader."""
    (batch,) = loader
    return batch
