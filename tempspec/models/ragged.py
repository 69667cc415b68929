"""A causal language model that decodes a ragged batch (floor 3).

Axes: R rows of a call, B rows of the batch, N new tokens, L positions viewed, V vocabulary, T token buffer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tempspec.core.trees import ancestry
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
    (within the window, for sliding layers), whatever lies behind. New tokens may also form a tree: each then sees the
    row's earlier keys and its own ancestors, and `keep_path` makes the accepted path the row's text.

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

    def forward(
        self,
        token_RN: Tensor,
        start_R: Tensor,
        *,
        longest: int,
        rows: Tensor | None = None,
        visible_RNN: Tensor | None = None,
    ) -> Tensor:
        """Feed N tokens to each row, from the row's own position on.

        Args:
            token_RN: int64; padding may be any valid id.
            start_R: position of each row's first token, int64.
            longest: the largest start of any row, known without asking the device.
            rows: the slots to feed, int64 `[R]`; None means the first R.
            visible_RNN: which new tokens (last axis) each new token sees, bool, itself included; `[N, N]` where all
                rows agree. A token's position is the number of tokens that it sees before it. None means a chain. It
                may cover more tokens than are fed: the first ones were fed by the calls before.

        Returns:
            Logits `[R, N, V]`.
        """
        return self._call(token_RN, start_R, longest, rows, keep=0, visible_RNN=visible_RNN)

    def keep_path(self, start_R: Tensor, path_RM: Tensor, rows: Tensor | None = None) -> None:
        """After a forward pass over a tree: make one path of it the row's text from `start_R` on.

        Args:
            start_R: as in that forward pass.
            path_RM: the path's tokens by their place among the N, from the root on; behind a shorter path's end any
                place may stand, its keys lie behind the row's length.
            rows: as in that forward pass.
        """
        column_M = torch.arange(path_RM.shape[1], device=self.device)
        self.cache.move(start_R[:, None] + path_RM, start_R[:, None] + column_M, rows)

    def fill(self, token_RN: Tensor, start_R: Tensor, *, longest: int, rows: Tensor) -> None:
        """As `forward`, for the cache's sake alone: no logits but one row's width are computed."""
        self._call(token_RN, start_R, longest, rows, keep=1)

    def _call(
        self,
        token_RN: Tensor,
        start_R: Tensor,
        longest: int,
        rows: Tensor | None,
        keep: int,
        visible_RNN: Tensor | None = None,
    ) -> Tensor:
        new = token_RN.shape[1]
        place_RN = start_R[:, None] + torch.arange(new, device=self.device)
        view = min(bucketed(longest + new), self.cache.capacity)
        key_1L = torch.arange(view, device=self.device)[None]
        if visible_RNN is None:
            position_RN, hidden_RNL = place_RN, key_1L[:, None] > place_RN[:, :, None]
        else:
            key_1L, position_RN, hidden_RNL = _tree_view(key_1L, start_R, new, visible_RNN)
        self.cache.begin(place_RN, rows, view)
        output = self.model(
            input_ids=token_RN.clamp(max=self._largest_id),
            position_ids=position_RN.clamp(max=self.context - 1),  # only padding lies beyond
            attention_mask=self._masks(key_1L, position_RN, hidden_RNL),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return output.logits

    def _masks(self, key_RL: Tensor, position_RN: Tensor, hidden_RNL: Tensor) -> Tensor | dict[str, Tensor]:
        """The masks of the model's kinds of layers, from keys' and queries' positions and what is hidden anyway."""
        if not self._by_kind and not self._cut_all:
            return self._additive(hidden_RNL)
        outside_RNL = hidden_RNL | (key_RL[:, None] <= position_RN[:, :, None] - self._window)
        if self._cut_all:
            return self._additive(outside_RNL)
        return {"full_attention": self._additive(hidden_RNL), "sliding_attention": self._additive(outside_RNL)}

    def _additive(self, hidden_RNL: Tensor) -> Tensor:
        """A float mask `[R, 1, N, L]`; boolean ones are wrong for models that fall back to eager attention."""
        mask = torch.zeros(hidden_RNL.shape, dtype=self.model.dtype, device=self.device)
        return mask.masked_fill_(hidden_RNL, torch.finfo(self.model.dtype).min)[:, None]


def _tree_view(key_1L: Tensor, start_R: Tensor, new: int, visible_RNN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a tree: the position of every key `[R, L]` and of the last `new` tokens, and which keys those do not see."""
    rows, tree = len(start_R), visible_RNN.shape[-1]
    root_R1 = start_R[:, None] - (tree - new)
    position_RN = root_R1 + visible_RNN.sum(-1) - 1
    offset_RL = key_1L - root_R1
    among_RL = (offset_RL >= 0) & (offset_RL < tree)
    offset_RL = offset_RL.clamp(0, tree - 1)
    key_RL = torch.where(among_RL, position_RN.gather(1, offset_RL), key_1L)
    visible_RNN = visible_RNN.expand(rows, -1, -1)[:, -new:]
    seen_RNL = visible_RNN.gather(2, offset_RL[:, None].expand(-1, new, -1))
    earlier_R1L = (key_1L < root_R1)[:, None]
    return key_RL, position_RN[:, -new:], ~(earlier_R1L | (seen_RNL & among_RL[:, None]))


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
        self._parent_BN: Tensor | None = None

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

    def grow(self, token_BM: Tensor, parent_BM: Tensor) -> Tensor:
        """Feed nodes of a tree behind the caught-up text; logits `[B, M, V]` after each.

        The next round's text is fed again from there: nothing of a tree counts as `fed`.
        """
        grown = self._parent_BN.shape[1] if self._parent_BN is not None else 0
        self._parent_BN = parent_BM if self._parent_BN is None else torch.cat([self._parent_BN, parent_BM], 1)
        return self._model.forward(
            token_BM, self._next_B + grown, longest=self._longest + grown, visible_RNN=ancestry(self._parent_BN)
        )

    def step(self, token_B: Tensor) -> Tensor:
        """Feed one more token a row; logits `[B, V]` after it."""
        logits = self._model.forward(token_B[:, None], self._next_B, longest=self._longest)
        self._next_B = self._next_B + 1
        self._longest += 1
        self.fed += 1
        return logits[:, 0]
