"""A causal language model that decodes a ragged batch (floor 3).

Axes: R rows of a call, B rows of the batch, N new tokens, L positions viewed, V vocabulary, T token buffer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tempspec.errors import UserError
from tempspec.models.cache import RaggedCache

BUCKET = 64
"""Lengths are rounded up to a multiple of this, so that few distinct shapes occur."""

ATTENTION_KINDS = ("full_attention", "sliding_attention")


def bucketed(length: int) -> int:
    """`length` rounded up to a multiple of `BUCKET`.

    >>> bucketed(1), bucketed(64), bucketed(65)
    (64, 64, 128)
    """
    return -(-length // BUCKET) * BUCKET


def context_length(config: PreTrainedConfig) -> int:
    """The most positions that a model was made for; 2**31 where its config names none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)


class RaggedModel:
    """A transformers causal language model with a `RaggedCache`; tokens go in with explicit positions and a 4-D mask.

    The caller keeps the rows' lengths. Attention is by position alone: a query at position i sees keys 0..i of its row
    (within the window, for sliding layers), whatever lies behind.

    Args:
        model: the model, in eval mode, on its device.
        slots: S, the most rows.
        capacity: positions a row; tokens written for padding need room too.

    Raises:
        UserError: the model has layers without a key-value cache by position (recurrent, linear or chunked attention).
    """

    def __init__(self, model: PreTrainedModel, slots: int, capacity: int) -> None:
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        foreign = sorted(kinds.difference(ATTENTION_KINDS))
        if foreign:
            raise UserError(
                f"{type(model).__name__} has {', '.join(foreign)} layers, which keep no key-value cache by position; "
                f"expected only {' and '.join(ATTENTION_KINDS)} layers: choose another model"
            )
        self.model = model
        self.context = context_length(model.config)
        self.device = model.device
        # A draft may lack ids that the target emits: it sees its last one instead, which no law depends on.
        self._largest_id = model.get_input_embeddings().weight.shape[0] - 1
        self.cache = RaggedCache(config.num_hidden_layers, slots, capacity)
        self._window: int = getattr(config, "sliding_window", None) or 0
        self._by_kind = "sliding_attention" in kinds
        # Models of one kind with a window and no layer types (Mistral) cut their only mask.
        self._cut_all = self._window > 0 and getattr(config, "layer_types", None) is None

    def forward(self, token_RN: Tensor, start_R: Tensor, *, longest: int, rows: Tensor | None = None) -> Tensor:
        """Feed N tokens to each row, from the row's own position on.

        Args:
            token_RN: int64; padding may be any valid id.
            start_R: position of each row's first token, int64.
            longest: the largest start of any row, known without asking the device.
            rows: the slots to feed, int64 `[R]`; None means the first R.

        Returns:
            Logits `[R, N, V]`.
        """
        return self._call(token_RN, start_R, longest, rows, keep=0)

    def fill(self, token_RN: Tensor, start_R: Tensor, *, longest: int, rows: Tensor) -> None:
        """As `forward`, for the cache's sake alone: no logits but one row's width are computed."""
        self._call(token_RN, start_R, longest, rows, keep=1)

    def _call(self, token_RN: Tensor, start_R: Tensor, longest: int, rows: Tensor | None, keep: int) -> Tensor:
        new = token_RN.shape[1]
        position_RN = start_R[:, None] + torch.arange(new, device=self.device)
        view = min(bucketed(longest + new), self.cache.capacity)
        self.cache.begin(position_RN, rows, view)
        output = self.model(
            input_ids=token_RN.clamp(max=self._largest_id),
            position_ids=position_RN.clamp(max=self.context - 1),  # only padding lies beyond
            attention_mask=self._masks(position_RN, view),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return output.logits

    def _masks(self, position_RN: Tensor, view: int) -> Tensor | dict[str, Tensor]:
        key_L = torch.arange(view, device=self.device)
        query_RN1 = position_RN[:, :, None]
        hidden = key_L > query_RN1
        if not self._by_kind and not self._cut_all:
            return self._additive(hidden)
        outside = hidden | (key_L <= query_RN1 - self._window)
        if self._cut_all:
            return self._additive(outside)
        return {"full_attention": self._additive(hidden), "sliding_attention": self._additive(outside)}

    def _additive(self, hidden_RNL: Tensor) -> Tensor:
        """A float mask `[R, 1, N, L]`; boolean ones are wrong for models that fall back to eager attention."""
        mask = torch.zeros(hidden_RNL.shape, dtype=self.model.dtype, device=self.device)
        return mask.masked_fill_(hidden_RNL, torch.finfo(self.model.dtype).min)[:, None]


class DraftSteps:
    """The draft model of one round, as a drafter sees it (`interfaces.StepModel`): catch up, then one token a step.

    Args:
        model: the draft model.
        cached: tokens of each row that the cache holds, on the host.
        lengths: tokens of each row, on the host; at most the draft's context is ever fed.

    Attributes:
        fed: drafted tokens fed so far; -1 before `catch_up`.
    """

    def __init__(self, model: RaggedModel, cached: Sequence[int], lengths: Sequence[int]) -> None:
        self._model = model
        self._ends = [min(length, model.context) for length in lengths]
        self._starts = [min(held, end - 1) for held, end in zip(cached, self._ends, strict=True)]
        self._longest = max(self._ends)
        self.fed = -1

    def catch_up(self, token_BT: Tensor, length_B: Tensor) -> Tensor:
        """Feed the tokens that the cache lacks (one or two a row); logits `[B, V]` after each row's last token."""
        device = self._model.device
        start_B = torch.tensor(self._starts, device=device)
        lacking = [end - start for start, end in zip(self._starts, self._ends, strict=True)]
        width = max(lacking)
        column_BN = (start_B[:, None] + torch.arange(width, device=device)).clamp(max=token_BT.shape[1] - 1)
        logits = self._model.forward(token_BT.gather(1, column_BN), start_B, longest=max(self._starts))
        self._next_B = torch.tensor(self._ends, device=device)
        self.fed = 0
        if width == 1:
            return logits[:, 0]
        return logits[torch.arange(len(lacking), device=device), torch.tensor(lacking, device=device) - 1]

    def step(self, token_B: Tensor) -> Tensor:
        """Feed one more token a row; logits `[B, V]` after it."""
        logits = self._model.forward(token_B[:, None], self._next_B, longest=self._longest)
        self._next_B = self._next_B + 1
        self._longest += 1
        self.fed += 1
        return logits[:, 0]
