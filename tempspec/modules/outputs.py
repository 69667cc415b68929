"""From models and a batch to the two sides of a loss or of a measurement (floor 5).

Axes: B batch, T positions, N the batch's response tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.models.heads import hidden_states, linear_head
from tempspec.models.pair import Pair
from tempspec.models.reading import Reading, reading
from tempspec.modules.fit.loss import Heads, Logits
from tempspec.modules.fit.objective import Head
from tempspec.modules.fit.teacher_cache import TeacherCache

__all__ = ["Outputs", "linear_heads", "reading_of"]


@dataclass(frozen=True)
class Outputs:
    """What models give on the kept positions of a batch.

    Args:
        pair: whose vocabulary counts.
        chunk: tokens whose logits exist at a time; None chooses.
        whole: take whole logits, at once.
        reading: how the models are called.
    """

    pair: Pair
    chunk: int | None
    whole: bool
    reading: Reading = field(default_factory=Reading)

    def of(self, model: PreTrainedModel, batch: Mapping[str, Tensor], keep_BT: Tensor) -> Head | Tensor:
        """A model's hidden states and head, or whole logits `[N, V]`, at the positions that predict kept tokens."""
        if self.whole:
            return model(**self.reading.inputs(batch)).logits[:, :-1][keep_BT]
        head = model.get_output_embeddings()
        return Head(hidden_states(model, **self.reading.inputs(batch))[:, :-1][keep_BT], head.weight, head.bias)

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


def reading_of(models: Sequence[PreTrainedModel], data: Any, cached: TeacherCache | None = None) -> Reading:
    """How all of some models are called on the data's rows; one line where documents of a row see each other.

    Args:
        models: on their devices. They are tried, by all processes at once.
        data: the data module, which says whether rows hold several documents; None for none.
        cached: a teacher that read the rows before, in its own way.
    """
    found = reading(models)
    able = {type(model).__name__: reading([model]).apart for model in models} if not found.apart else {}
    names = [name for name, apart in able.items() if not apart]
    if cached is not None and not cached.apart:
        found, names = replace(found, apart=False), [*names, "the cached teacher"]
    if getattr(data, "packed", False) and names:
        rank_zero_info(
            f"the documents of a packed row see each other: {' and '.join(names)} cannot keep them apart; "
            "data.pack: false makes each a row of its own"
        )
    return found
