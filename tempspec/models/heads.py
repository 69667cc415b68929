"""Whether a model's logits are a linear map of its last hidden states, and nothing else (floor 3).

Axes: B batch, T positions, H hidden.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tempspec.models.attention import use_attention

__all__ = ["hidden_states", "linear_head"]

_PROBE_TOKENS = 4


def hidden_states(model: PreTrainedModel, **inputs: Tensor | bool) -> Tensor:
    """The input of the model's head, `[B, T, H]`, without computing logits."""
    return model.base_model(**inputs).last_hidden_state


@torch.no_grad()
def linear_head(model: PreTrainedModel) -> nn.Linear | None:
    """The model's head if logits equal head(`hidden_states`); None where anything else happens on the way.

    Soft-capped or scaled logits, scaled hidden states, adapters on the head and models without a base are found by
    trying: a few tokens go through the whole model and through its parts, by the attention that it was loaded with:
    another may not take float32.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or model.base_model is model:
        return None
    ids = torch.arange(_PROBE_TOKENS, device=head.weight.device)[None] % head.weight.shape[0]
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    training, attention = model.training, model.config._attn_implementation
    use_attention(model, None)
    try:
        with torch.autocast(ids.device.type, enabled=False):
            logits = model.eval()(input_ids=ids, use_cache=False).logits
            hidden = hidden_states(model, input_ids=ids, use_cache=False)
            mapped = nn.functional.linear(seen[-1], head.weight, head.bias)  # without hooks, bit for bit
    finally:
        handle.remove()
        model.train(training)
        use_attention(model, attention)
    if len(seen) != 1 or seen[0].shape != hidden.shape:
        return None
    same = torch.equal(mapped, logits) and torch.allclose(seen[0], hidden, rtol=1e-3, atol=1e-3)
    return head if same else None
