"""Heads: small networks on the target's own hidden states that draft tokens (floor 2).

Entry i of a text joins what the target made of token i with token i + 1, and predicts token i + 2. Step j of a round
gives entry i what the head itself made at step j - 1, and token i + 1 + j; it predicts token i + 2 + j.

Axes: B rows, T positions of the text, N entries, H hidden, C numbers that a step hands on, A query heads, G key heads,
D head size, V the target's vocabulary, R the head's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tempspec.core.unrolled import UnrolledKeys
from tempspec.core.vocabulary import widened

__all__ = ["DraftHead", "HeadModel", "HeadStep", "HeadTarget", "Keys"]


class Keys(Protocol):
    """The keys and values of a head's layers: a cache while decoding, unrolled steps while training.

    It alone knows what an entry sees, so that one `HeadModel.step` serves both.

    Attributes:
        position_BN: the rotary position of every entry of the step in flight.
    """

    position_BN: Tensor

    def attend(self, query_BAND: Tensor, key_BGND: Tensor, value_BGND: Tensor, layer: int = 0) -> Tensor:
        """Keep the step's keys and values; attention over all that its entries see, `[B, A, N, D]`."""


class HeadStep(NamedTuple):
    """What a step of a head gives.

    Attributes:
        hidden_BNH: the input of the output matrix.
        carry_BNC: what the next step is given.
    """

    hidden_BNH: Tensor
    carry_BNC: Tensor


@dataclass(frozen=True)
class HeadTarget:
    """What a head may know of its target besides hidden states. Its tensors stay the target's: they are never trained.

    Attributes:
        config: the target's text configuration, as transformers has it.
        embedding_VH: its token embeddings.
        output_VH: its output matrix.
    """

    config: Any
    embedding_VH: Tensor
    output_VH: Tensor


class HeadModel(torch.nn.Module, ABC):
    """A head's network. It holds what is trained, and never the target's embeddings.

    Args:
        states: the target's states that it reads, by number: k is the input of layer k, and for k = n the output of
            the last of n layers, before the final norm.
        vocabulary: V, the rows of the target's output matrix.
        ids_R: the target's ids that it can draft, ascending; None for all.
    """

    ids_R: Tensor | None
    key_layers: int = 1
    """How many layers keep keys and values."""
    recomputes: bool = False
    """Whether training keeps only the input of each step and its keys, and takes it again in the backward pass."""

    def __init__(self, states: Sequence[int], vocabulary: int, ids_R: Tensor | None = None) -> None:
        super().__init__()
        self.states, self.vocabulary = tuple(states), vocabulary
        self.register_buffer("ids_R", ids_R, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """That of its weights."""
        return self.output_RH.dtype

    @property
    @abstractmethod
    def output_RH(self) -> Tensor:
        """The matrix that makes logits of `hidden_BNH`; a frozen one belongs here too."""

    @abstractmethod
    def start(self, states: Sequence[Tensor]) -> Tensor:
        """What the first step is given in place of an earlier step's: `[B, N, C]` from the target's states."""

    @abstractmethod
    def step(self, carry_BNC: Tensor, token_BN: Tensor, embedded_BNH: Tensor, keys: Keys, number: int) -> HeadStep:
        """One step for every entry.

        Args:
            carry_BNC: what `start`, or the step before, gave for the same entries.
            token_BN: the token that each entry reads, by the target's id.
            embedded_BNH: its embedding by the target.
            keys: the keys and values of the steps and entries before.
            number: of the step, from 0: for a head whose steps differ.
        """

    def logits(self, hidden_BNH: Tensor) -> Tensor:
        """The logits of the head's own vocabulary, `[B, N, R]`."""
        return torch.nn.functional.linear(hidden_BNH, self.output_RH)

    def target_logits(self, hidden_BNH: Tensor) -> Tensor:
        """The logits over the target's vocabulary, `[B, N, V]`: -inf, which is probability 0, where it has no id."""
        logits_BNR = self.logits(hidden_BNH)
        return logits_BNR if self.ids_R is None else widened(logits_BNR, self.ids_R, self.vocabulary)

    def unrolled(
        self,
        states: Sequence[Tensor],
        token_BT: Tensor,
        embed: Callable[[Tensor], Tensor],
        steps: int,
        document_BT: Tensor | None = None,
        position_BT: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Hidden states `[B, T - 1, H]` of every training step, over the text's own tokens.

        Entry i of step j predicts token i + 2 + j; where the text has no such token the entry means nothing. The graph
        reaches from a step to all before it, so that each may be left once its loss is known.

        Args:
            states: the target's states of the text, `[B, T, H]` each.
            token_BT: the text; what comes after a row's end changes nothing before it.
            embed: the target's embedding of ids.
            steps: how many.
            document_BT: numbers of documents, where a row holds several.
            position_BT: their positions, where they do not count from 0 in every row.
        """
        entries = token_BT.shape[1] - 1
        if position_BT is None:
            position_BT = torch.arange(entries + 1, device=token_BT.device).expand_as(token_BT)
        keys = UnrolledKeys(position_BT[:, :-1], None if document_BT is None else document_BT[:, :-1])
        carry_BNC = self.start([state[:, :-1] for state in states])
        place_N = torch.arange(1, entries + 1, device=token_BT.device)
        for number in range(steps):
            token_BN = token_BT[:, place_N.clamp(max=entries)]
            (hidden_BNH, carry_BNC), keys = self._unrolled_step(carry_BNC, token_BN, embed, keys, number)
            yield hidden_BNH
            keys.advance()
            place_N = place_N + 1

    def _unrolled_step(
        self,
        carry_BNC: Tensor,
        token_BN: Tensor,
        embed: Callable[[Tensor], Tensor],
        keys: UnrolledKeys,
        number: int,
    ) -> tuple[HeadStep, UnrolledKeys]:
        """A step, and the keys with what it added; each time it is taken anew from the keys before."""

        def take(carry_BNC: Tensor) -> tuple[HeadStep, UnrolledKeys]:
            longer = keys.copy()
            return self.step(carry_BNC, token_BN, embed(token_BN), longer, number), longer

        if not (self.recomputes and self.training and torch.is_grad_enabled()):
            return take(carry_BNC)
        return checkpoint(take, carry_BNC, use_reentrant=False)


class DraftHead(ABC):
    """A kind of head and its options: what it reads of a target, how it is built, saved and loaded.

    Attributes:
        draft_vocabulary: how many of the target's tokens it can draft; None for all.
    """

    source: ClassVar[str] = ""
    """The paper that the head comes from."""
    formats: ClassVar[tuple[str, ...]]
    """The formats that `save` writes, the default first."""
    draft_vocabulary: int | None = None

    @abstractmethod
    def states(self, layers: int) -> tuple[int, ...]:
        """The target's states that a new head reads, by number as in `HeadModel`.

        Args:
            layers: of the target.
        """

    @abstractmethod
    def build(self, target: HeadTarget, ids_R: Tensor | None = None) -> HeadModel:
        """A new head for a target, in float32 on its device.

        Args:
            target: which it is for.
            ids_R: the ids that it can draft, int64, ascending; needed where `draft_vocabulary` is set.
        """

    @abstractmethod
    def save(self, model: HeadModel, target: HeadTarget, folder: Path, format: str, dtype: torch.dtype) -> None:
        """Write a head.

        Args:
            model: the head.
            target: which it is for.
            folder: a new folder to write to.
            format: one of `formats`.
            dtype: what its weights are rounded to.
        """

    @abstractmethod
    def load(self, folder: Path, target: HeadTarget) -> HeadModel:
        """Read what `save` wrote, whatever the format, in the file's own dtype on the target's device.

        Args:
            folder: where it is.
            target: which it is for.

        Raises:
            UserError: it holds no such head, or one for another target.
        """
