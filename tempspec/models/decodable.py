"""Whether a model gives a ragged batch the logits that it gives each row alone (floor 3).

Axes: R rows, N new tokens, V vocabulary.
"""

from weakref import WeakSet

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.errors import UserError
from tempspec.models.ragged import RaggedModel

__all__ = ["check_decodable"]

_LENGTHS = (1, 3)
"""Tokens of the two rows before the new ones."""
_NEW = 2
_CAPACITY = 8
_NO_LIMIT = 2**31
"""What `context_length` says of a model whose config names no limit."""

_ROUNDING = 0.01
_HALF_ROUNDING = 0.4
"""Distances that rounding explains: TF32's, and that of half precision, where a token may also go to another expert.

Random mixtures of experts of 24 layers came to 0.1 in bf16; logits that have nothing in common differ by 1.4.
"""

_known: WeakSet[PreTrainedModel] = WeakSet()


def check_decodable(model: PreTrainedModel) -> None:
    """Refuse a model that the ragged cache would lead astray; tried once for each model, with a few tokens.

    Recurrent states, positions taken from the cache's length and masks of other shapes are found by trying: two rows go
    through the cache together, and each through the plain forward pass. What is chosen by the longest row of a batch,
    such as LongRoPE's factors, is looked for beside a row that ends at the last position that `context_length` allows.

    Raises:
        UserError: the forward pass fails, or the logits are not the model's own.
    """
    if model in _known:
        return
    ragged, training = RaggedModel(model, len(_LENGTHS), _CAPACITY), model.training
    try:
        model.eval()
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            distance = max(_distance(ragged), _beside_the_longest(model, ragged.context))
    except Exception as error:  # whatever a forward pass raises that was not written for such a cache
        reason = str(error).strip().partition("\n")[0]
        raise _refusal(model, f"the error {type(error).__name__} ({reason})") from error
    finally:
        model.train(training)
    if distance > (_HALF_ROUNDING if model.dtype.itemsize < 4 else _ROUNDING):
        raise _refusal(model, "others")
    _known.add(model)


def _refusal(model: PreTrainedModel, got: str) -> UserError:
    return UserError(
        f"a {model.config.model_type} cannot be decoded: expected the logits of each row alone from a batch of rows of "
        f"different lengths, got {got}; choose another model"
    )


def _distance(ragged: RaggedModel) -> float:
    """How far the logits after the new tokens are from those of each row alone, as a share of their size."""
    model, device = ragged.model, ragged.device
    longest = max(_LENGTHS)
    token_RN = torch.arange(len(_LENGTHS) * (longest + _NEW), device=device).view(len(_LENGTHS), -1)
    token_RN %= model.get_input_embeddings().weight.shape[0]
    start_R = torch.tensor(_LENGTHS, dtype=torch.int64, device=device)
    ragged.fill(token_RN[:, :longest], torch.zeros_like(start_R), longest=0, rows=torch.arange(2, device=device))
    new_RN = token_RN.gather(1, start_R[:, None] + torch.arange(_NEW, device=device))
    got_RNV = ragged.forward(new_RN, start_R, longest=longest)
    own_RNV = torch.stack([_own(model, token_RN[row, : length + _NEW]) for row, length in enumerate(_LENGTHS)])
    return _apart(got_RNV.float(), own_RNV)


def _beside_the_longest(model: PreTrainedModel, context: int) -> float:
    """How far a row's logits are from its own beside one that ends where the context does, as a share of their size.

    Both skip positions: factors that differ show at some distance alone.
    """
    count = min(sum(_LENGTHS), context)
    if context >= _NO_LIMIT:
        return 0.0
    token_RN = torch.arange(count, device=model.device).expand(2, -1) % model.get_input_embeddings().weight.shape[0]
    position_RN = torch.arange(count, device=model.device).repeat(2, 1) * max(context // 32, 1)
    position_RN[1, -1] = context - 1
    asked = {"input_ids": token_RN, "position_ids": position_RN, "attention_mask": torch.ones_like(token_RN)}
    got_RNV, own_RNV = (
        model(**{name: value[:rows] for name, value in asked.items()}, use_cache=False).logits.float()
        for rows in (2, 1)
    )
    return _apart(got_RNV[0], own_RNV[0])


def _apart(got: Tensor, own: Tensor) -> float:
    """The size of a difference of logits, as a share of how much the right ones differ."""
    return float((got - own).norm() / (own - own.mean(-1, keepdim=True)).norm())


def _own(model: PreTrainedModel, token_N: Tensor) -> Tensor:
    """The logits after the last new tokens of a row alone, `[N, V]`."""
    return model(input_ids=token_N[None], use_cache=False).logits[0, -_NEW:].float()
