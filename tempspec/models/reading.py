"""How models are called on padded rows, and on rows of several documents: tried, not known (floor 3).

Axes: B batch, T positions, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.models.ragged import context_length

__all__ = ["Reading", "reading"]

_DOCUMENT = 6
"""Tokens of a document of the probe: more than the window of a recurrent model's convolution."""
_ROUNDING = 1e-5
"""Of the largest logit: what kernels differ by in float32."""


@dataclass(frozen=True)
class Reading:
    """How models are called on a batch.

    Without a mask attention is plainly causal, which the fast kernels know. Positions that begin again are how
    transformers is told of several documents in a row; that needs the mask to be left out.

    Args:
        masked: padding is hidden by a mask; otherwise by nothing, as it is on the right.
        apart: the documents of a row are kept from each other; otherwise each sees those before it.
        branches: without gradients, rows of one prompt are read as one that branches; see `tempspec.models.branches`.
    """

    masked: bool = True
    apart: bool = False
    branches: bool = False

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor | bool]:
        """What a model's forward takes of a batch of `tempspec.data.batches.Collate`."""
        taken: dict[str, Tensor | bool] = {"input_ids": batch["input_ids"], "use_cache": False}
        if self.apart and "position_ids" in batch:
            return taken | {"position_ids": batch["position_ids"]}
        return taken | ({"attention_mask": batch["attention_mask"]} if self.masked else {})


@torch.no_grad()
def reading(models: Sequence[PreTrainedModel]) -> Reading:
    """The plainest way in which all of some models give the tokens of a row what they give each document alone.

    A few tokens are read in every way: three documents alone, and as a batch of two in one row and one that is padded.
    Equal means to rounding: four times what the same tokens differ by where nothing could have changed them.
    """
    found = [_of(model) for model in models]
    return Reading(any(each.masked for each in found), all(each.apart for each in found))


def _of(model: PreTrainedModel) -> Reading:
    embedding = model.get_input_embeddings().weight
    size = min(_DOCUMENT, context_length(model.config) // 2)
    ids_DT = (1 + torch.arange(3 * size, device=embedding.device) % (len(embedding) - 1)).view(3, size)
    place_T = torch.arange(2 * size, device=embedding.device)
    seen_2T = torch.stack([torch.ones_like(place_T), (place_T < size).long()])
    batch = {
        "input_ids": torch.stack([ids_DT[:2].flatten(), torch.cat([ids_DT[2], torch.zeros_like(ids_DT[2])])]),
        "attention_mask": seen_2T,
        "position_ids": torch.stack([place_T % size, place_T]),
    }
    training = model.training
    try:
        with torch.autocast(embedding.device.type, enabled=False):
            model.eval()
            alone = {"input_ids": ids_DT, "attention_mask": torch.ones_like(ids_DT)}
            alone_DTV = torch.cat([_logits(model, {k: v[row, None] for k, v in alone.items()}) for row in range(3)])
            masked, plain, apart = (
                _errors(_logits(model, Reading(*way).inputs(batch)), alone_DTV)
                for way in ((True, False), (False, False), (False, True))
            )
    finally:
        model.train(training)
    rounding = float(alone_DTV.abs().max()) * max(_ROUNDING, 16 * torch.finfo(embedding.dtype).eps)
    equal = 4 * min(masked[2], plain[0]) + rounding
    if not plain[2] <= equal:
        return Reading()
    # Where documents see each other the second is far off; it must come most of the way back, or to rounding.
    near = min(plain[1] / 2, max(plain[1] / 10, 4 * apart[0]))
    return Reading(False, max(apart) <= equal and apart[1] <= near)


def _logits(model: PreTrainedModel, inputs: Mapping[str, Tensor | bool]) -> Tensor:
    """Float32 `[B, T, V]`; NaN where the model does not take such inputs."""
    try:
        return model(**{"use_cache": False, **inputs}).logits.float()
    except (TypeError, ValueError, RuntimeError, IndexError):
        if "attention_mask" in inputs:
            raise
        ids_BT = torch.as_tensor(inputs["input_ids"], dtype=torch.int64)
        return torch.full((*ids_BT.shape, 1), torch.nan, dtype=torch.float32, device=ids_BT.device)


def _errors(logits_BTV: Tensor, alone_DTV: Tensor) -> list[float]:
    """How far the tokens of each document are from what they are alone."""
    size = alone_DTV.shape[1]
    found_DTV = torch.stack([logits_BTV[0, :size], logits_BTV[0, size:], logits_BTV[1, :size]])
    return [float(error) for error in (found_DTV - alone_DTV).abs().amax((1, 2))]
