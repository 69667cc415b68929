"""Text that is written while training: on-policy by the draft, or by the target, row by row (floor 5).

Axes: B batch, T positions.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.core.noise import fold, uniform
from tempspec.core.verification import first_rejection
from tempspec.decoding.engine import Engine
from tempspec.errors import UserError
from tempspec.interfaces import Draft, HeadModel, Noise, Request, Verdict, Verifier
from tempspec.models.head_draft import DraftModel
from tempspec.modules.outputs import generation_temperature
from tempspec.plugins.drafters import CausalLM, Speculator
from tempspec.plugins.lengths import FixedLength

__all__ = ["OnlineText", "OnlineWriter", "TokenMixture"]

LONGEST = 16
"""Tokens that the draft may write before the target writes one."""

Batch = Mapping[str, Tensor]


class TokenMixture(Verifier):
    """Not a rule of speculative decoding: each token is the draft's or the target's, at random and whatever they are.

    Args:
        target_share: the chance of the target's.
    """

    lossless = False

    def __init__(self, target_share: float) -> None:
        self.target_share = target_share

    def verify(self, logp_BKV: Tensor, draft: Draft, noise: Noise) -> Verdict:
        """The drafted tokens up to the first that is left to the target are accepted; the target writes that one."""
        keep_BK = noise.coins(
            torch.full(draft.token_BK.shape, 1 - self.target_share, dtype=torch.float64, device=logp_BKV.device)
        )
        accepted_B = first_rejection(keep_BK, draft.length_B)
        law_BV = logp_BKV[torch.arange(len(accepted_B), device=logp_BKV.device), accepted_B].exp()
        return Verdict(accepted_B, noise.draw(law_BV))


@dataclass
class OnlineText:
    """Rows whose response is written while training, in place of the corpus' own.

    Args:
        writer: `draft` is on-policy (GKD, arXiv 2306.13649; DistillSpec, arXiv 2310.08461); `target` samples the
            teacher; `both` mix token by token. A head drafts only after the target: it takes `target` or `both`.
        share: the chance of a row to be rewritten, in [0, 1]; the others keep the corpus' response.
        low: the least temperature that responses are sampled at, 0 or more; each row draws its own.
        high: the largest; `low` by default.
        target_share: of `both`, the chance of a token to be the target's, in (0, 1]; the others are the draft's, of
            which no more than 16 follow each other.
        every: optimiser steps from one writing to the next; between them the last rewritten rows come again, to each of
            a step's accumulated batches its own.
        prompt_tokens: tokens of a row that are kept as its prompt where it has fewer, as documents do.
        max_new_tokens: tokens of a response at most.

    Raises:
        UserError: an option is out of its range.
    """

    writer: Literal["draft", "target", "both"] = "draft"
    share: float = 1.0
    low: float = 1.0
    high: float | None = None
    target_share: float = 0.5
    every: int = 1
    prompt_tokens: int = 8
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        """Refuse what could not be written."""
        self.high = self.low if self.high is None else self.high
        checks = (
            (0 <= self.share <= 1, "share", "in [0, 1]", self.share),
            (0 <= self.low <= self.high < float("inf"), "low and high", "0 <= low <= high", (self.low, self.high)),
            (0 < self.target_share <= 1, "target_share", "in (0, 1]", self.target_share),
            (self.every >= 1, "every", "1 or more", self.every),
            (self.prompt_tokens >= 1, "prompt_tokens", "1 or more", self.prompt_tokens),
            (self.max_new_tokens >= 1, "max_new_tokens", "1 or more", self.max_new_tokens),
        )
        for fine, name, expected, got in checks:
            if not fine:
                raise UserError(f"online.{name} must be {expected}, got {got}")


@dataclass
class OnlineWriter:
    """Rewrites rows of batches; what it wrote last, by the number of the batch within its step, is its state.

    Args:
        options: what to write, and how often.
        vocabulary: the number of real ids.
        stop_ids: the ids that end a response.
        context: the most tokens of a row.
    """

    options: OnlineText
    vocabulary: int
    stop_ids: frozenset[int]
    context: int
    written: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0

    def __call__(
        self,
        batch: Batch,
        model: PreTrainedModel,
        step: int,
        key: int,
        draft: DraftModel | None = None,
        number: int = 0,
    ) -> dict[str, Tensor]:
        """The batch with some rows rewritten; the same for equal weights, batch and key.

        Args:
            batch: the batch of the data module.
            model: who writes; it is left in the mode that it is in.
            step: optimiser steps taken.
            key: of the batch's randomness.
            draft: who writes the tokens that `model` does not; None for none.
            number: which of its step's batches it is.
        """
        began = time.perf_counter()
        chosen = self._chosen(batch, key)
        if step % self.options.every == 0 and number == 0:
            self.written.clear()
        if not self.written.get(number):
            self.written[number] = self._write(batch, chosen, model, key, draft)
        written = self.written[number]
        rows = [self._row(batch, index) for index in range(len(batch["input_ids"]))]
        for place, index in enumerate(chosen):
            if written:
                rows[index] = written[place % len(written)]
        rewritten = self._batch(batch, rows)
        self.seconds += time.perf_counter() - began
        return rewritten

    def _chosen(self, batch: Batch, key: int) -> list[int]:
        """The rows to rewrite, never a filler."""
        count = len(batch["input_ids"])
        coin_B = uniform(key, 1, torch.arange(count)) < self.options.share
        return [index for index in range(count) if coin_B[index] and batch["weight"][index] > 0]

    @torch.no_grad()
    def _write(
        self, batch: Batch, chosen: Sequence[int], model: PreTrainedModel, key: int, draft: DraftModel | None
    ) -> list[dict[str, Any]]:
        options = self.options
        assert options.high is not None
        temperature_B = options.low + (options.high - options.low) * uniform(key, 2, torch.arange(len(chosen)))
        requests = [
            Request(
                prompt := self._prompt(self._row(batch, index)),
                target_temperature=float(temperature),
                max_new_tokens=min(options.max_new_tokens, self.context - len(prompt)),
                stop_ids=self.stop_ids,
                seed=int(fold(key, 3, place)),
                key=str(place),
            )
            for place, (index, temperature) in enumerate(zip(chosen, temperature_B, strict=True))
        ]
        writers: list[DraftModel] = [model] if draft is None else [model, draft]
        training = [writer.training for writer in writers]
        try:
            for writer in writers:
                writer.eval()
            with torch.autocast(model.device.type, enabled=False):
                engine = self._engine(model, draft, slots=max(len(requests), 1))
                completions = sorted(engine.run(requests), key=lambda completion: int(completion.request.key))
        finally:
            for writer, mode in zip(writers, training, strict=True):
                writer.train(mode)
        return [
            {
                "input_ids": [*done.request.prompt, *done.tokens],
                "loss_mask": [False] * len(done.request.prompt) + [True] * len(done.tokens),
                "generation_temperature": done.request.target_temperature,
            }
            for done in completions
        ]

    def _engine(self, model: PreTrainedModel, draft: DraftModel | None, *, slots: int) -> Engine:
        if draft is None:
            return Engine(model, self.vocabulary, slots=slots)
        return Engine(
            model,
            self.vocabulary,
            verifier=TokenMixture(self.options.target_share),
            drafter=Speculator() if isinstance(draft, HeadModel) else CausalLM(),
            length=FixedLength(LONGEST),
            draft=draft,
            slots=slots,
        )

    def _prompt(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        """The tokens before the first target of the loss, or the first few; one token of room is left."""
        mask = row["loss_mask"]
        own = mask.index(True) if True in mask else len(mask)
        return tuple(row["input_ids"][: min(max(own, self.options.prompt_tokens), self.context - 1)])

    def _row(self, batch: Batch, index: int) -> dict[str, Any]:
        length = int(batch["attention_mask"][index].sum())
        own = {"position_ids": batch["position_ids"][index, :length].tolist()} if "position_ids" in batch else {}
        return own | {
            "input_ids": batch["input_ids"][index, :length].tolist(),
            "loss_mask": batch["loss_mask"][index, :length].tolist(),
            "generation_temperature": float(generation_temperature(batch)[index]),
        }

    def _batch(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Rows padded on the right, with all else of the batch; what was written is one document."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids_BT = batch["input_ids"].new_zeros(len(rows), longest)
        seen_BT, mask_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT, dtype=torch.bool)
        position_BT = torch.arange(longest, device=ids_BT.device).repeat(len(rows), 1)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            ids_BT[index, :length] = torch.tensor(row["input_ids"], dtype=torch.int64)
            mask_BT[index, :length] = torch.tensor(row["loss_mask"], dtype=torch.bool)
            seen_BT[index, :length] = 1
            position_BT[index, :length] = torch.tensor(row.get("position_ids", range(length)), dtype=torch.int64)
        temperatures = [row["generation_temperature"] for row in rows]
        several = {"position_ids": position_BT} if "position_ids" in batch else {}
        return (
            dict(batch)
            | several
            | {
                "input_ids": ids_BT,
                "attention_mask": seen_BT,
                "loss_mask": mask_BT,
                "generation_temperature": torch.tensor(temperatures, dtype=torch.float32, device=ids_BT.device).view(
                    torch.int32
                ),
            }
        )
