"""A head's training steps as batches of a loss: which entry predicts which token of the text (floor 5).

Entry i of step j predicts token i + 2 + j, and the target's law of that token is behind token i + 1 + j. A step is a
batch in which fewer tokens count, so that the loss of any draft serves it, a step at a time.

Axes: B batch, T positions, N the step's response tokens, H hidden.
"""

from torch import Tensor

from tempspec.modules.outputs import Batch, response

__all__ = ["kept_entries", "kept_positions", "step_batch"]


def step_batch(batch: Batch, number: int) -> dict[str, Tensor]:
    """The batch of one step: the first 2 + j tokens of every row are behind no entry, and do not count.

    Args:
        batch: as the data module makes it.
        number: j, from 0.
    """
    mask_BT = batch["loss_mask"].clone()
    mask_BT[:, : 2 + number] = False
    return {**batch, "loss_mask": mask_BT}


def kept_positions(hidden_BTH: Tensor, batch: Batch) -> Tensor:
    """The target's hidden states `[N, H]` whose laws a step is to learn.

    Args:
        hidden_BTH: of the text.
        batch: of the step.
    """
    return hidden_BTH[:, :-1][response(batch)]


def kept_entries(hidden_BNH: Tensor, batch: Batch, number: int) -> Tensor:
    """The head's hidden states `[N, H]` of the same tokens, in the same order.

    Args:
        hidden_BNH: of the step's entries, as `HeadModel.unrolled` gives them.
        batch: of the step.
        number: j.
    """
    keep_BN = response(batch)[:, 1 + number :]
    return hidden_BNH[:, : keep_BN.shape[1]][keep_BN]
