"""What models give on the tokens of a batch that count, and both models' logits, some tokens at a time (floor 5).

A model's side is one of three: whole logits, hidden states with the linear map to logits, or what a cache has kept of
the target's logits. `LogitPairs` turns any two of them into logits by slices; losses and measurements read those.

Axes: B batch, T positions, N the batch's tokens that count, U positions of the target, V vocabulary, R the draft's,
H hidden.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import PreTrainedModel

from tempspec.core.sparse import SparseLogits
from tempspec.core.survey import Survey, survey
from tempspec.core.vocabulary import widened
from tempspec.models.branches import read_branches
from tempspec.models.heads import hidden_states, linear_head
from tempspec.models.reading import Reading, reading
from tempspec.models.tapping import Taps
from tempspec.modules.kept import Kept

__all__ = [
    "Batch",
    "HiddenStates",
    "LogitPairs",
    "LogitSource",
    "Piece",
    "SharedLogits",
    "Side",
    "TargetLogits",
    "Tokens",
    "chunk_length",
    "generation_temperature",
    "linear_heads",
    "logits_of",
    "memory_of",
    "reading_of",
    "response",
    "wide",
]

Batch = Mapping[str, Tensor]


class SharedLogits(NamedTuple):
    """The target's logits at some positions, where several tokens read the same one.

    Attributes:
        logits_UV: of the positions.
        index_N: which of them each token reads.
    """

    logits_UV: Tensor
    index_N: Tensor

    def of_positions(self, value_N: Tensor) -> Tensor | None:
        """The tokens' values as those of the positions, `[U]`; None where tokens of one position differ."""
        value_U = value_N.new_empty(len(self.logits_UV)).index_copy(0, self.index_N, value_N)
        return value_U if torch.equal(value_U[self.index_N], value_N) else None


TargetLogits = Tensor | SparseLogits | SharedLogits
"""The target's logits on some tokens, all of the vocabulary or a few."""

Tokens = slice | Tensor
"""Some of the tokens that count: neighbours, or their numbers."""

_CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}
"""Tokens x vocabulary of one chunk: 32 MiB a float32 tensor on a CPU, where larger ones gain nothing; 512 on a GPU."""


_BYTES_OF_WHOLE = 6 * 8 * 4
"""Bytes of a GPU for each of tokens x vocabulary where these are not cut: a sixth of it for eight float32 tensors."""


class HiddenStates(NamedTuple):
    """The input of a model's head, and the linear map that turns it into logits.

    Attributes:
        hidden_NH: the input of the head.
        weight_VH: its weight; may have more rows than the laws have tokens (a padded vocabulary).
        bias_V: its bias, or None.
    """

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None = None


Side = HiddenStates | Tensor | SparseLogits
"""One model's outputs on the tokens that count: `[N, H]` with the head, logits `[N, V]`, or a cache's."""


class Piece(NamedTuple):
    """Both models' logits on some tokens.

    Attributes:
        tokens: which ones.
        target_UV: the target's.
        draft_NR: the draft's.
        index_N: which of the target's each token reads; None where they are the same ones.
        ids_R: the target's ids that the draft's logits are of; None where both count alike.
    """

    tokens: Tokens
    target_UV: Tensor
    draft_NR: Tensor
    index_N: Tensor | None
    ids_R: Tensor | None

    def survey(self, temperatures: Sequence[float]) -> Survey:
        """All that validation reports of them."""
        return survey(self.target_UV, self.draft_NR, temperatures, index_N=self.index_N, ids_R=self.ids_R)

    def whole(self) -> tuple[Tensor, Tensor]:
        """The logits of both token by token over all ids, `[N, V]` each."""
        target_NV = self.target_UV if self.index_N is None else self.target_UV[self.index_N]
        if self.ids_R is None:
            return target_NV, self.draft_NR
        return target_NV, widened(self.draft_NR, self.ids_R, target_NV.shape[-1])


@dataclass(frozen=True)
class LogitPairs:
    """The target's and the draft's logits on the same tokens, by slices.

    Attributes:
        target: the target's side.
        draft: the draft's.
        vocabulary: the number of real ids; a side may have more, or fewer.
        chunk: tokens whose logits exist at a time where a side is hidden states; None chooses.
        ids_R: the target's ids that the draft's logits are of, ascending; None where both count alike.
        place_N: which of the target's tokens each of the draft's is, where steps of a head share the target's; None
            where they are the same ones.
    """

    target: Side
    draft: HiddenStates | Tensor
    vocabulary: int
    chunk: int | None = None
    ids_R: Tensor | None = None
    place_N: Tensor | None = None

    @property
    def common(self) -> int:
        """The ids that both sides have: a loss knows no other. All of the target's where the draft has chosen ids."""
        sides = (self.target, self.draft) if self.ids_R is None else (self.target,)
        return min([self.vocabulary, *(_ids(side) for side in sides if _ids(side))])

    def chunks(self) -> Iterator[Tokens]:
        """The tokens, chunk by chunk; one empty chunk where there are none.

        Tokens that share the target's come side by side, so that its logits are computed once for all of them.
        """
        hidden = self.draft.hidden_NH if isinstance(self.draft, HiddenStates) else None
        if hidden is None:
            yield slice(0, len(self.draft))
            return
        chunk = self.chunk
        if chunk is None:
            chunk = chunk_length(self.vocabulary, hidden.device.type, len(hidden), memory_of(hidden.device))
        if self.place_N is not None:
            yield from self.place_N.argsort(stable=True).split(chunk)
            return
        yield from (slice(start, start + chunk) for start in range(0, max(len(hidden), 1), chunk))

    def of_target(self, tokens: Tokens, vocabulary: int) -> TargetLogits:
        """The target's logits of some tokens over the first ids."""
        if isinstance(self.target, SparseLogits):
            assert isinstance(tokens, slice)
            return self.target.part(tokens)
        if self.place_N is None:
            return logits_of(self.target, tokens, vocabulary)
        place_N, index_N = self.place_N[tokens].unique(return_inverse=True)
        return SharedLogits(logits_of(self.target, place_N, vocabulary), index_N)

    def of_draft(self, tokens: Tokens, vocabulary: int) -> Tensor:
        """The draft's logits of some tokens over the first ids, fewer where it has fewer."""
        return logits_of(self.draft, tokens, vocabulary)

    def pieces(self) -> Iterator["Piece"]:
        """Both models' logits, chunk by chunk: for measurements, which know all of the target's ids."""
        pairs = self.narrow()
        for tokens in pairs.chunks():
            target, index_N = pairs.of_target(tokens, self.vocabulary), None
            if isinstance(target, SharedLogits):
                target, index_N = target
            assert isinstance(target, Tensor)
            yield Piece(tokens, target, pairs.of_draft(tokens, self.vocabulary), index_N, self.ids_R)

    @property
    def place_in_chunks(self) -> Tokens:
        """Where each token is among those of all `chunks`."""
        return slice(None) if self.place_N is None else self.place_N.argsort(stable=True).argsort()

    def narrow(self) -> "LogitPairs":
        """The same with heads as autocast would take them, cast once instead of once per chunk."""
        target = narrow(self.target) if isinstance(self.target, HiddenStates) else self.target
        draft = narrow(self.draft) if isinstance(self.draft, HiddenStates) else self.draft
        return replace(self, target=target, draft=draft)


@dataclass(frozen=True)
class LogitSource:
    """Runs models on batches.

    Args:
        vocabulary: the number of real ids.
        chunk: tokens whose logits exist at a time; None chooses.
        whole: take whole logits, at once.
        reading: how the models are called.
    """

    vocabulary: int
    chunk: int | None = None
    whole: bool = False
    reading: Reading = field(default_factory=Reading)

    def of(self, model: nn.Module, batch: Batch, kept: Kept) -> HiddenStates | Tensor:
        """A model's side at the positions that predict kept tokens, of `[B, T-1]`."""
        inputs = self.reading.inputs(batch)
        if self.whole or not isinstance(model, PreTrainedModel):
            return kept.outputs(model(**inputs).logits)
        head = model.get_output_embeddings()
        if self.reading.branches and "position_ids" not in batch and not torch.is_grad_enabled():
            hidden_BTH = read_branches(model, batch, lambda rows: hidden_states(model, **self.reading.inputs(rows)))
        else:
            hidden_BTH = hidden_states(model, **inputs)
        return HiddenStates(kept.outputs(hidden_BTH), head.weight, head.bias)

    def tapped(self, model: PreTrainedModel, batch: Batch, states: Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Some states of a model, `[B, T, H]` each, and its hidden states or logits `[B, T, X]`, of the same pass."""
        inputs = self.reading.inputs(batch)
        with Taps(model, states) as taps:
            output = model(**inputs).logits if self.whole else hidden_states(model, **inputs)
            return taps.states, output

    def side(self, model: PreTrainedModel, output_NX: Tensor) -> HiddenStates | Tensor:
        """A model's side from its outputs on the tokens that count, as `tapped` gives them."""
        if self.whole:
            return output_NX
        head = model.get_output_embeddings()
        return HiddenStates(output_NX, head.weight, head.bias)

    def pairs(self, target: Side, draft: HiddenStates | Tensor, ids_R: Tensor | None = None) -> LogitPairs:
        """Two sides over the real ids, of which the draft may know some alone."""
        return LogitPairs(target, draft, self.vocabulary, self.chunk, ids_R)


def chunk_length(vocabulary: int, device: str = "cpu", tokens: int | None = None, memory: int = 0) -> int:
    """Tokens at a time: enough for the matrix products, few enough for the memory; at least 16.

    All of them where eight float32 tensors of all their logits take a sixth of a GPU's memory or less.

    Args:
        vocabulary: logits of a token.
        device: its kind.
        tokens: how many there are; None where nobody knows yet.
        memory: of the GPU, in bytes.

    >>> chunk_length(32_000), chunk_length(128_256, "cuda"), chunk_length(49_152, "cuda", 8192, 80 * 10**9)
    (262, 1046, 8192)
    """
    if tokens is not None and device == "cuda" and tokens * vocabulary <= memory // _BYTES_OF_WHOLE:
        return max(tokens, 16)
    return max(_CHUNK_ELEMENTS.get(device, _CHUNK_ELEMENTS["cuda"]) // vocabulary, 16)


def memory_of(device: torch.device | str) -> int:
    """A GPU's memory in bytes; 0 of a CPU, and where there is no GPU."""
    cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_properties(device).total_memory if cuda else 0


def response(batch: Batch) -> Tensor:
    """Which logits count, bool `[B, T-1]`: entry t predicts token t + 1."""
    return batch["loss_mask"][:, 1:] & (batch["weight"][:, None] > 0)


def generation_temperature(batch: Batch) -> Tensor:
    """The temperature that each row's text was sampled at, float32 `[B]`, NaN where unknown.

    A batch has it as integers with the same bits: Lightning rounds a batch's floats under `bf16-true`.
    """
    return batch["generation_temperature"].view(torch.float32)


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 or better."""
    return logits if logits.dtype == torch.float64 else logits.float()


def narrow(head: HiddenStates) -> HiddenStates:
    """Hidden states and head as autocast would take them."""
    device = head.hidden_NH.device.type
    if not torch.is_autocast_enabled(device) or head.hidden_NH.dtype == torch.float64:
        return head
    dtype = torch.get_autocast_dtype(device)
    return HiddenStates(*(None if part is None else part.to(dtype) for part in head))  # type: ignore[arg-type]


def linear_heads(models: Sequence[PreTrainedModel]) -> bool:
    """Whether every model's logits are a linear map of its hidden states, so that they can be had in chunks."""
    return all(linear_head(model) is not None for model in models)


def reading_of(models: Sequence[PreTrainedModel], data: Any, cache_apart: bool = True) -> Reading:
    """How all of some models are called on the data's rows; one line where documents of a row see each other.

    Args:
        models: on their devices. They are tried, by all processes at once.
        data: the data module, which says whether rows hold several documents; None for none.
        cache_apart: whether a cache of the target, if one takes part, kept the documents of a row from each other.
    """
    found = reading(models)
    able = {type(model).__name__: reading([model]).apart for model in models} if not found.apart else {}
    names = [name for name, apart in able.items() if not apart]
    if not cache_apart:
        found, names = replace(found, apart=False), [*names, "the cache of the target"]
    if getattr(data, "packed", False) and names:
        rank_zero_info(
            f"the documents of a packed row see each other: {' and '.join(names)} cannot separate them; "
            "data.pack: false makes each a row of its own"
        )
    return found


def _ids(side: Side) -> int:
    """How many ids a side has; 0 for a cache, which has those of the vocabulary."""
    if isinstance(side, HiddenStates):
        return len(side.weight_VH)
    return 0 if isinstance(side, SparseLogits) else side.shape[-1]


def logits_of(side: HiddenStates | Tensor, tokens: Tokens, vocabulary: int) -> Tensor:
    """The logits of some of a side's tokens over the first ids, `[n, V]`, fewer where it has fewer."""
    if isinstance(side, Tensor):
        return side[tokens, :vocabulary]
    bias_V = None if side.bias_V is None else side.bias_V[:vocabulary]
    return nn.functional.linear(side.hidden_NH[tokens], side.weight_VH[:vocabulary], bias_V)
