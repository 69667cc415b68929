"""From models and a batch to the two sides of a loss or of a measurement (floor 5).

Axes: B batch, T positions, N the batch's response tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from tempspec.models.heads import hidden_states, linear_head
from tempspec.modules.loss import Heads, Logits
from tempspec.modules.objective import Head
from tempspec.modules.pair import Pair

__all__ = ["Outputs", "inputs", "linear_heads"]


@dataclass(frozen=True)
class Outputs:
    """What models give on the kept positions of a batch.

    Args:
        pair: whose vocabulary counts.
        chunk: tokens whose logits exist at a time; None chooses.
        whole: take whole logits, at once.
    """

    pair: Pair
    chunk: int | None
    whole: bool

    def of(self, model: PreTrainedModel, batch: Mapping[str, Tensor], keep_BT: Tensor) -> Head | Tensor:
        """A model's hidden states and head, or whole logits `[N, V]`, at the positions that predict kept tokens."""
        if self.whole:
            return model(**inputs(batch)).logits[:, :-1][keep_BT]
        head = model.get_output_embeddings()
        return Head(hidden_states(model, **inputs(batch))[:, :-1][keep_BT], head.weight, head.bias)

    def join(self, target: Head | Tensor, draft: Head | Tensor) -> Heads | Logits:
        """Both models' outputs, over the real ids."""
        vocabulary = self.pair.vocabulary
        if isinstance(target, Head) and isinstance(draft, Head):
            return Heads(target, draft, vocabulary, self.chunk)
        assert isinstance(target, Tensor)
        assert isinstance(draft, Tensor)
        return Logits(target[..., :vocabulary], draft[..., :vocabulary])


def linear_heads(models: Sequence[PreTrainedModel]) -> bool:
    """Whether every model's logits are a linear map of its hidden states, so that they can be had in chunks."""
    return all(linear_head(model) is not None for model in models)


def inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor | bool]:
    """What a model's forward takes."""
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
