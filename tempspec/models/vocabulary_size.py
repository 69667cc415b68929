"""A draft with as many output rows as its target: engines compare the two numbers before they load it (floor 3).

Models of one family often share a tokenizer and pad its ids to different sizes. The rows that are added here are never
read as input, and hardly ever drafted.

Axes: N tokens that are tried, V the draft's own ids.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tempspec.errors import UserError
from tempspec.models.heads import linear_head

__all__ = ["resize_vocabulary"]

_TRIED = (4, 64)
"""Rows and tokens of the text that a rare id is looked for on."""
_NEVER = -1e4
"""A bias that no logit outweighs."""


@torch.no_grad()
def resize_vocabulary(draft: PreTrainedModel, size: int, known: int) -> float:
    """Give a draft as many ids as its target has, in place. The logits of its own ids stay as they are.

    An id that is added gets the row of the draft's least likely one or the mean of all rows, whichever is drafted less;
    where the head has biases, one that rules it out. An engine rejects such an id, since the target never says it.

    Args:
        draft: in eval mode; its logits are a linear map of its hidden states.
        size: ids that it has afterwards.
        known: ids of the tokenizer, which no cut may reach.

    Returns:
        The most that the added ids have of the draft's distribution at T = 1, on some text.

    Raises:
        UserError: its logits are no such map, or the tokenizer knows ids beyond the size.
    """
    if linear_head(draft) is None:
        kind = type(draft).__name__
        raise UserError(f"expected a draft whose logits are a linear map, got {kind}: serve it in transformers")
    if size < known:
        raise UserError(f"a draft of {size} ids cannot say all {known} of its tokenizer's: name its own target")
    own = draft.config.get_text_config().vocab_size
    text_BT = torch.randint(min(known, own), _TRIED, generator=torch.Generator().manual_seed(0)).to(draft.device)
    logits_NV = _logits(draft, text_BT)[:, :own]
    draft.resize_token_embeddings(size, mean_resizing=False)
    head = draft.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    if size <= own:
        return 0.0
    if head.bias is not None:
        head.weight[own:], head.bias[own:] = 0, _NEVER
        return _share(draft, text_BT, own)
    rarest = int(logits_NV.log_softmax(-1).amax(0).argmin())
    shares = {}
    for row_H in (head.weight[rarest].clone(), head.weight[:own].mean(0)):
        head.weight[own:] = row_H
        shares[_share(draft, text_BT, own)] = row_H
    head.weight[own:] = shares[min(shares)]
    return min(shares)


def _share(draft: PreTrainedModel, text_BT: Tensor, own: int) -> float:
    return float(_logits(draft, text_BT).softmax(-1)[:, own:].sum(-1).max())


def _logits(draft: PreTrainedModel, text_BT: Tensor) -> Tensor:
    """Logits on a text, float32 `[N, V]`."""
    return draft(input_ids=text_BT, use_cache=False).logits.flatten(0, 1).float()
