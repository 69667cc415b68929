"""The cross-entropy of a language model with a text's own tokens, some tokens at a time (floor 5).

It is the loss of a draft without its distance from a target: no temperature, and the share of labels is 1.

Axes: B batch, T positions less the last, N tokens that count, V vocabulary, G temperatures, of which there are none.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.interfaces import LossContext
from tempspec.modules.fit.objective import Objective
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import Batch, LogitPairs, LogitSource, response
from tempspec.plugins.divergences import ForwardKL

__all__ = ["TextLoss", "text_loss"]


class TextLoss(NamedTuple):
    """What a batch's own tokens cost a model, in nats.

    Attributes:
        total: the weighted sum, with its gradient.
        nats_BT: -log p of each token given those before it, without; 0 where it does not count.
        weight_BT: the weight of each token; 0 where it does not count.
    """

    total: Tensor
    nats_BT: Tensor
    weight_BT: Tensor


def text_loss(model: PreTrainedModel, batch: Batch, source: LogitSource) -> TextLoss:
    """The cross-entropy of the response tokens, in float32 or better whatever the logits are in.

    All tokens have logits, those that do not count as well, so that the host waits for no number of them.

    Args:
        model: what is trained or measured.
        batch: as the data module makes it.
        source: runs the model, and says how many tokens have logits at a time.
    """
    label_BT = batch["input_ids"][:, 1:]
    kept = Kept.everywhere(label_BT)
    side = source.of(model, batch, kept)
    weight_BT = response(batch) * batch["weight"].float()[:, None]
    weight_N = kept.values(weight_BT)
    # A target without a single id, and a divergence that no temperature asks.
    pairs = LogitPairs(weight_N.new_empty(len(weight_N), 0), side, source.vocabulary, source.chunk)
    none_GN, none_G = weight_N.new_empty(0, len(weight_N)), weight_N.new_empty(0)
    context = LossContext(0, None, kept.values(label_BT)[None])
    found = Objective(ForwardKL(), none_GN, none_GN, none_G, weight_N, context, label_weight=1.0).of(pairs)
    return TextLoss(found.total, torch.where(weight_BT > 0, kept.spread(found.loss_N), 0.0), weight_BT)
