"""A causal language model that decodes a ragged batch (floor 3).

Axes: R rows of a call, B rows of the batch, N new tokens, L positions viewed, V vocabulary, T token buffer.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedConfig, PreTrainedModel

from tempspec.errors import UserError
from tempspec.models.cache import RaggedCache, cache_argument
from tempspec.models.compiling import Recorded, compiled
from tempspec.models.fast_linear import ThinProducts
from tempspec.models.stopwatch import Stopwatch
from tempspec.models.tapping import Taps

BUCKET = 64
"""Lengths are rounded up to a multiple of this, so that few distinct shapes occur."""

SMALLEST_STATIC_VIEW = 256
"""Positions that a compiled pass sees at least; from there on views double."""

ATTENTION_KINDS = ("full_attention", "sliding_attention")


def bucketed(length: int) -> int:
    """`length` rounded up to a multiple of `BUCKET`.

    >>> bucketed(1), bucketed(64), bucketed(65)
    (64, 64, 128)
    """
    return -(-length // BUCKET) * BUCKET


def made_for(config: PreTrainedConfig) -> int:
    """The most positions that a model was made for; 2**31 where its config names none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31)


def factor_switch(config: PreTrainedConfig) -> int | None:
    """The positions within which LongRoPE keeps its short factors; None for a model with other positions.

    After them transformers takes the long ones, for every row of a batch whose longest row is longer, and `generate`
    computes its cache anew. (`dynamic` factors change after `made_for`, where nothing is read.)
    """
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    kinds = [given, *(part for part in given.values() if isinstance(part, dict))]  # one for each type of layer
    long = [kind for kind in kinds if kind.get("rope_type", kind.get("type")) in ("longrope", "su")]
    return min((int(kind.get("original_max_position_embeddings") or made_for(config)) for kind in long), default=None)


def context_length(config: PreTrainedConfig) -> int:
    """The longest row that a model reads as if it were alone, in any batch: `made_for`, or `factor_switch`."""
    return min(made_for(config), factor_switch(config) or 2**31)


def check_rows(name: str, config: PreTrainedConfig, length: int) -> None:
    """Refuse rows that a model cannot read in batches.

    Args:
        name: what the user calls the model.
        config: the model's.
        length: of the longest row, `data.max_length`.

    Raises:
        UserError: naming the model and how many positions it reads.
    """
    context, switch = context_length(config), factor_switch(config)
    if length <= context:
        return
    if context == switch:
        raise UserError(
            f"data.max_length is {length}, but {name} changes its LongRoPE factors after {switch} positions, for all "
            f"rows of a batch: lower it to {switch} or less"
        )
    raise UserError(f"data.max_length is {length}, but {name} was made for at most {context} positions: lower it")


def largest_id(model: PreTrainedModel) -> int:
    """The last id that a model has an embedding for."""
    return model.get_input_embeddings().weight.shape[0] - 1


def readable(token: Tensor, model: PreTrainedModel) -> Tensor:
    """Ids as a model reads them: one that it has no embedding for as its last one.

    A draft may lack ids that the target emits. No law that is emitted depends on what it sees instead.
    """
    return token.clamp(max=largest_id(model))


def lend_embeddings(model: PreTrainedModel) -> None:
    """Let a model read any id wherever it is called, as `RaggedModel` does; changed in place."""

    def clamped(module: Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(named.get("input_ids"), Tensor):
            named = named | {"input_ids": readable(named["input_ids"], model)}
        return args, named

    if not hasattr(model, "_lends_embeddings"):
        model._lends_embeddings = model.base_model.register_forward_pre_hook(clamped, with_kwargs=True)


def _layer_kinds(config: PreTrainedConfig) -> set[str]:
    """What kinds of attention a model's layers have."""
    return set(getattr(config, "layer_types", None) or ["full_attention"])


def _check_layers(model: PreTrainedModel, capacity: int) -> None:
    """Refuse layers that no ragged cache serves.

    Raises:
        UserError: naming the model and its layers, or its window.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    if foreign := sorted(_layer_kinds(config).difference(ATTENTION_KINDS)):
        raise UserError(
            f"{name} has {', '.join(foreign)} layers, which keep no key-value cache by position; "
            f"expected only {' and '.join(ATTENTION_KINDS)} layers: choose another model"
        )
    if "local" in (getattr(config, "attention_layers", None) or ()) and capacity > config.window_size:
        raise UserError(
            f"{name} counts its local window from the longest row of a batch: expected rows of at "
            f"most its {config.window_size} tokens, got {capacity}: decode shorter ones, or choose another model"
        )


class RaggedModel:
    """A transformers causal language model with a `RaggedCache`; tokens go in with explicit positions and a 4-D mask.

    The caller keeps the rows' lengths. Attention is by position alone: a query at position i sees keys 0..i of its row
    (within the window, for sliding layers), whatever comes after. New tokens may also form a tree: each then sees the
    row's earlier keys and its own ancestors, and `keep_path` makes the accepted path the row's text.

    Args:
        model: the model, in eval mode, on its device.
        slots: S, the most rows.
        capacity: positions per row; tokens written for padding need room too.
        widths: compile the passes of at most so many new tokens per row, ascending: they run on all slots, padded to
            the next of these widths; on a GPU passes over trees are recorded as well. None, the default, compiles
            nothing.
        tapped: numbers of states that every pass leaves in `states`, as `tempspec.models.tapping` counts them; not of
            compiled passes.

    Attributes:
        states: those of the last pass, `[R, N, H]` each.

    Raises:
        UserError: the model has layers without a key-value cache by position (recurrent, linear or chunked attention),
            or a local window that rows of this capacity exceed (GPT-Neo).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        slots: int,
        capacity: int,
        widths: Sequence[int] = (),
        tapped: Sequence[int] = (),
    ) -> None:
        config = model.config.get_text_config()
        _check_layers(model, capacity)
        self.model = model
        self.context = context_length(model.config)
        self.device = model.device
        self.cache = RaggedCache(config.num_hidden_layers, slots, capacity)
        self._cached = {cache_argument(model): self.cache}
        self._window: int = getattr(config, "sliding_window", None) or 0
        self._by_kind = "sliding_attention" in _layer_kinds(config)
        # Models of one kind with a window and no layer types (Mistral) cut their only mask.
        self._cut_all = self._window > 0 and getattr(config, "layer_types", None) is None
        self._place_L = torch.arange(capacity, device=self.device)
        self._seen = torch.zeros((), dtype=model.dtype, device=self.device)
        self._hidden = torch.full((), torch.finfo(model.dtype).min, dtype=model.dtype, device=self.device)
        self.stopwatch = Stopwatch(self.device)
        self._thin = ThinProducts(model)
        self._reachable = capacity <= self.context  # else padding, and it alone, may lie beyond the context
        self._widths = tuple(widths)
        self._taps = Taps(model, tapped) if tapped else None
        self.states: tuple[Tensor, ...] = ()
        self._compiled = compiled(self._pass, self.device) if widths else self._pass
        self._records = isinstance(self._compiled, Recorded)
        if widths:
            self._allocate()

    @torch.no_grad()
    def _allocate(self) -> None:
        """Feed a token that the first real one overwrites: the cache must exist before a pass is compiled."""
        first = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.fill(first[:, None], first, longest=0, rows=first)

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
            Logits `[R, N, V]`; on CUDA graphs they are kept until the next pass.
        """
        return self._call(token_RN, start_R, longest, rows, keep=0, visible_RNN=visible_RNN)

    def forward_last(self, token_RN: Tensor, start_R: Tensor, *, longest: int) -> Tensor:
        """As `forward` on the first R slots, but logits `[R, V]` after each row's last token alone."""
        return self._call(token_RN, start_R, longest, None, keep=1)[:, -1]

    def keep_path(self, start_R: Tensor, path_RM: Tensor, rows: Tensor | None = None) -> None:
        """After a forward pass over a tree: make one path of it the row's text from `start_R` on.

        Args:
            start_R: as in that forward pass.
            path_RM: the path's tokens by their place among the N, from the root on; after a shorter path's end any
                place may be named: its keys come after the row's length.
            rows: as in that forward pass.
        """
        column_M = torch.arange(path_RM.shape[1], device=self.device)
        self.cache.move(start_R[:, None] + path_RM, start_R[:, None] + column_M, rows)

    def fill(self, token_RN: Tensor, start_R: Tensor, *, longest: int, rows: Tensor) -> None:
        """As `forward`, for the cache's sake alone: no logits but one row's width are computed."""
        self._call(token_RN, start_R, longest, rows, keep=1)

    def copy(self, from_R: Tensor, to_R: Tensor, length: int) -> None:
        """Give rows the keys that others were filled with, so many of each; all int64 `[R]`."""
        self.cache.copy(from_R, to_R, length)

    def static_view(self, end: int) -> int:
        """The positions that a compiled pass sees up to this one: views double, so that few shapes occur."""
        return min(max(SMALLEST_STATIC_VIEW, 1 << (end - 1).bit_length()), self.cache.capacity)

    def _call(
        self,
        token_RN: Tensor,
        start_R: Tensor,
        longest: int,
        rows: Tensor | None,
        keep: int,
        visible_RNN: Tensor | None = None,
    ) -> Tensor:
        with self.stopwatch.running(), self._taps or nullcontext():
            logits = self._run(token_RN, start_R, longest, rows, keep, visible_RNN)
            if self._taps is not None:
                self.states = self._taps.states
            return logits

    def _run(
        self,
        token_RN: Tensor,
        start_R: Tensor,
        longest: int,
        rows: Tensor | None,
        keep: int,
        visible_RNN: Tensor | None,
    ) -> Tensor:
        if rows is None and visible_RNN is None and self._widths and token_RN.shape[1] <= self._widths[-1]:
            return self._static(token_RN, start_R, longest, keep)
        if rows is None and visible_RNN is not None and self._records:
            return self._static_tree(token_RN, start_R, longest, keep, visible_RNN)
        view = min(bucketed(longest + token_RN.shape[1]), self.cache.capacity)
        with self._thin.turned(token_RN.numel()):
            return self._pass(token_RN, start_R, view, keep, visible_RNN, rows)

    def _static(self, token_RN: Tensor, start_R: Tensor, longest: int, keep: int) -> Tensor:
        """A compiled pass: all slots, a width of `widths`, a view that doubles, so that few shapes occur."""
        rows, new = token_RN.shape
        width = next(width for width in self._widths if width >= new)
        idle = self.cache.slots - rows
        if width > new or idle:
            token_RN = torch.nn.functional.pad(token_RN, (0, width - new, 0, idle))
            start_R = torch.nn.functional.pad(start_R, (0, idle))
        with self._thin.turned(token_RN.numel()):
            logits = self._compiled(token_RN, start_R, self.static_view(longest + width), keep if width == new else 0)
        return logits[:rows, new - 1 : new] if keep and width > new else logits[:rows, :new]

    def _static_tree(self, token_RN: Tensor, start_R: Tensor, longest: int, keep: int, visible_RNN: Tensor) -> Tensor:
        """A recorded pass over nodes of a tree: as `_static`, of exactly so many nodes; a tree has few levels."""
        rows, new = token_RN.shape
        visible_RNN = visible_RNN.expand(rows, -1, -1)
        if idle := self.cache.slots - rows:
            token_RN = torch.nn.functional.pad(token_RN, (0, 0, 0, idle))
            start_R = torch.nn.functional.pad(start_R, (0, idle))
            visible_RNN = torch.nn.functional.pad(visible_RNN, (0, 0, 0, 0, 0, idle), value=True)
        with self._thin.turned(token_RN.numel()):
            return self._compiled(token_RN, start_R, self.static_view(longest + new), keep, visible_RNN)[:rows]

    def _pass(
        self,
        token_RN: Tensor,
        start_R: Tensor,
        view: int,
        keep: int,
        visible_RNN: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """One forward pass: reads no value on the host, so that it can be compiled or captured."""
        new = token_RN.shape[1]
        place_RN = start_R[:, None] + self._place_L[:new]
        key_1L = self._place_L[None, :view]
        if visible_RNN is None:
            position_RN, hidden_RNL = place_RN, key_1L[:, None] > place_RN[:, :, None]
        else:
            key_1L, position_RN, hidden_RNL = tree_view(key_1L, start_R, new, visible_RNN)
        self.cache.begin(place_RN, rows, view)
        output = self.model(
            input_ids=readable(token_RN, self.model),
            position_ids=position_RN if self._reachable else position_RN.clamp(max=self.context - 1),
            attention_mask=self._masks(key_1L, position_RN, hidden_RNL),
            use_cache=True,
            logits_to_keep=keep,
            **self._cached,
        )
        self.cache.end()
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
        return torch.where(hidden_RNL, self._hidden, self._seen)[:, None]


def tree_view(key_1L: Tensor, start_R: Tensor, new: int, visible_RNN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
