"""Rows that begin alike, read as one that branches: their beginning once, then the rest of each (floor 3).

A target's answers to one prompt at seven temperatures repeat the prompt seven times. A mask tells what each token sees,
and positions tell where it is. Whether a model minds both is tried.

Axes: B rows, T positions, L positions of the row that branches, H hidden.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.models.heads import hidden_states
from tempspec.models.ragged import context_length

__all__ = ["alike", "branching", "read_branches"]

_SHARE = 0.25
"""The least part of a group's tokens that one reading of the beginning must save: masks are slower than none."""
_LONGEST = 4096
"""Positions of a row that branches: attention between its branches is computed for nothing, and its mask is square."""
_PROBE = 6
_WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_window_size", "attention_chunk_size")
"""What configurations call a window. It may count places in the row instead of positions, beyond what is tried."""
_ROUNDING = 1e-4
"""Of a position's hidden state, by their norms: what kernels differ by in float32."""


def alike(ids_BT: Tensor) -> int:
    """How many tokens all rows begin with.

    >>> alike(torch.tensor([[1, 2, 3], [1, 2, 4]])), alike(torch.tensor([[1, 2]]))
    (2, 2)
    """
    return int((ids_BT == ids_BT[:1]).all(0).long().cumprod(0).sum())


def read_branches(
    model: PreTrainedModel, batch: Mapping[str, Tensor], plain: Callable[[Mapping[str, Tensor]], Tensor]
) -> Tensor:
    """The hidden states of a batch, `[B, T, H]`, where rows of one `key` that begin alike are read together.

    Args:
        model: in eval mode, one that `branching` is true of; no gradient passes.
        batch: `input_ids`, `attention_mask` `[B, T]`, padded on the right, and `key` `[B]`.
        plain: reads rows that nothing is shared of, `[B, T, H]`.
    """
    ids_BT, length_B = batch["input_ids"], batch["attention_mask"].sum(1).tolist()
    grouped: dict[int, list[int]] = {}
    for row, key in enumerate(batch["key"].tolist()):
        grouped.setdefault(key, []).append(row)
    parts: list[tuple[list[int], Tensor]] = []
    alone: list[int] = []
    for rows in grouped.values():
        own_BT = ids_BT[rows, : max(length_B[row] for row in rows)]
        shared = alike(own_BT)
        if _worth_it(len(rows), own_BT.shape[1], shared):
            parts.append((rows, _branches(model, own_BT, shared)))
        else:
            alone += rows
    if alone:
        parts.append((alone, plain({name: value[alone] for name, value in batch.items()})))
    return _together(parts, ids_BT)


@torch.no_grad()
def branching(model: PreTrainedModel) -> bool:
    """Whether a model gives rows that are read as one that branches what it gives each alone, to rounding."""
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in _WINDOWS):
        return False
    embedding = model.get_input_embeddings().weight
    size = min(_PROBE, context_length(model.config) // 2)
    ids_BT = 1 + torch.arange(2 * size, device=embedding.device).repeat(3, 1) % (len(embedding) - 1)
    ids_BT[1:, size:] = 1 + (
        ids_BT[1:, size:] + torch.tensor([[3], [7]], dtype=torch.int64, device=embedding.device)
    ) % (len(embedding) - 1)
    training = model.training
    try:
        with torch.autocast(embedding.device.type, enabled=False):
            model.eval()
            alone_BTH = hidden_states(model, input_ids=ids_BT, use_cache=False).float()
            found_BTH = _branches(model, ids_BT, size).float()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    finally:
        model.train(training)
    if found_BTH.shape != alone_BTH.shape:
        return False
    rounding = max(_ROUNDING, 8 * torch.finfo(embedding.dtype).eps)
    return bool(((found_BTH - alone_BTH).norm(dim=-1) <= rounding * alone_BTH.norm(dim=-1)).all())


def _worth_it(rows: int, width: int, shared: int) -> bool:
    """Whether enough is saved, and the row that branches is not too long."""
    saved = shared * (rows - 1)
    return saved >= _SHARE * rows * width and rows * width - saved <= _LONGEST


def _branches(model: PreTrainedModel, ids_BT: Tensor, shared: int) -> Tensor:
    """The hidden states of rows with a beginning of so many tokens, `[B, T, H]`."""
    rows, width = ids_BT.shape
    rest = width - shared
    place_T = torch.arange(width, device=ids_BT.device)
    ids_1L = torch.cat([ids_BT[:1, :shared], ids_BT[:, shared:].reshape(1, -1)], 1)
    position_L = torch.cat([place_T[:shared], place_T[shared:].repeat(rows)])
    branch_L = torch.cat([place_T[:shared] * 0 - 1, torch.arange(rows, device=ids_BT.device).repeat_interleave(rest)])
    own_LL = (branch_L[:, None] == branch_L) | (branch_L < 0)
    seen_LL = own_LL & (position_L[:, None] >= position_L)
    mask_11LL = torch.zeros(1, 1, *seen_LL.shape, dtype=model.dtype, device=ids_BT.device)
    mask_11LL.masked_fill_(~seen_LL, torch.finfo(model.dtype).min)
    hidden_LH = hidden_states(
        model, input_ids=ids_1L, position_ids=position_L[None], attention_mask=mask_11LL, use_cache=False
    )[0]
    first_BSH = hidden_LH[:shared].expand(rows, -1, -1)
    return torch.cat([first_BSH, hidden_LH[shared:].view(rows, rest, hidden_LH.shape[1])], 1)


def _together(parts: Sequence[tuple[list[int], Tensor]], ids_BT: Tensor) -> Tensor:
    """The rows of all parts in their places; zeros where a part was read without the batch's padding."""
    first = parts[0][1]
    hidden_BTH = first.new_zeros(*ids_BT.shape, first.shape[-1])
    for rows, own_BTH in parts:
        hidden_BTH[rows, : own_BTH.shape[1]] = own_BTH
    return hidden_BTH
