"""The plugin `Eagle3`: its options, and a new head for a target (floor 3)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tempspec.errors import UserError
from tempspec.interfaces import DraftHead, HeadModel, HeadTarget
from tempspec.models.eagle3.config import Eagle3Config, default_states
from tempspec.models.eagle3.files import FORMATS, read_head, write_head
from tempspec.models.eagle3.network import Eagle3Model

__all__ = ["Eagle3"]

_SPREAD = 0.02
"""The standard deviation of new weights."""


class Eagle3(DraftHead):
    """EAGLE-3: a Llama layer on three of the target's states, which feeds itself its own output.

    The defaults are what vLLM and SGLang both serve, at temperatures above 0 too.

    Args:
        states: which of the target's states it reads, ascending; k is the input of layer k. null takes 2, n // 2 and
            n - 3.
        draft_vocabulary: draft the most frequent tokens of the training text alone; null drafts all. SGLang samples
            from a head with all tokens only.
        norm_output: hand on the normed output, as EAGLE 3.1 does.

    Raises:
        ValueError: an argument is out of its range.
    """

    source = "Li et al. 2025, EAGLE-3: Scaling up Inference Acceleration of LLMs via Training-Time Test (2503.01840)"
    formats = FORMATS

    def __init__(
        self, states: Sequence[int] | None = None, draft_vocabulary: int | None = None, norm_output: bool = False
    ) -> None:
        if states is not None and (len(states) < 2 or list(states) != sorted(set(states)) or states[0] < 0):
            raise ValueError(f"states must be two or more ascending numbers, 0 or more, got {list(states)}")
        if draft_vocabulary is not None and draft_vocabulary < 1:
            raise ValueError(f"draft_vocabulary must be 1 or more, got {draft_vocabulary}")
        self.chosen = None if states is None else tuple(states)
        self.draft_vocabulary, self.norm_output = draft_vocabulary, norm_output

    def states(self, layers: int) -> tuple[int, ...]:
        """See `DraftHead.states`.

        Raises:
            UserError: the target has no such state, or too few layers for the default.
        """
        if self.chosen is None:
            return default_states(layers)
        if self.chosen[-1] > layers:
            raise UserError(f"states must be 0 to {layers}, the target's number of layers, got {list(self.chosen)}")
        return self.chosen

    def build(self, target: HeadTarget, ids_R: Tensor | None = None) -> HeadModel:
        """See `DraftHead.build`; the output matrix begins as the target's rows.

        Raises:
            UserError: a draft vocabulary without ids, or larger than the target's.
        """
        vocabulary = len(target.output_VH)
        if self.draft_vocabulary is not None and self.draft_vocabulary >= vocabulary:
            raise UserError(
                f"draft_vocabulary must be below the target's {vocabulary} tokens, got {self.draft_vocabulary}: "
                "leave it out to draft all of them"
            )
        states = self.states(target.config.num_hidden_layers)
        config = Eagle3Config.for_target(
            target.config, vocabulary, states, draft_vocab_size=self.draft_vocabulary, norm_output=self.norm_output
        )
        ids_R = None if ids_R is None else ids_R.to(target.output_VH.device)
        model = Eagle3Model(config, ids_R).to(target.output_VH.device, torch.float32)
        _begin(model, target.output_VH)
        return model

    def save(self, model: HeadModel, target: HeadTarget, folder: Path, format: str, dtype: torch.dtype) -> None:
        """See `DraftHead.save`."""
        assert isinstance(model, Eagle3Model)
        write_head(model, target, folder, format, dtype)

    def load(self, folder: Path, target: HeadTarget) -> HeadModel:
        """See `DraftHead.load`; the folder's own sizes and states win over the options."""
        return read_head(folder, target)


@torch.no_grad()
def _begin(model: Eagle3Model, output_VH: Tensor) -> None:
    """New weights: the target's rows as output matrix, ones in norms, small random numbers elsewhere."""
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.weight.normal_(0.0, _SPREAD)
        elif isinstance(part, nn.RMSNorm):
            part.weight.fill_(1.0)
    model.lm_head.weight.copy_(output_VH if model.ids_R is None else output_VH[model.ids_R])
