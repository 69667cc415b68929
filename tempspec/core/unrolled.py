"""Attention of a head's unrolled training steps: which keys each step sees (floor 1).

Entry i of step 0 sees the entries up to i of step 0. At step j it sees those still, and its own keys of steps 1..j:
what a decoding round that began at entry i would have in its cache.

Axes: B rows, N entries, L keys, A query heads, G key heads, D head size.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["UnrolledKeys", "visible"]


def visible(entries: int, step: int, device: torch.device | str = "cpu") -> Tensor:
    """Which keys each entry sees at a step, bool `[N, (step + 1) N]`; keys are those of step 0, then 1, and so on.

    >>> visible(2, 1).int()
    tensor([[1, 0, 1, 0],
            [1, 1, 0, 1]], dtype=torch.int32)
    """
    earlier_NN = torch.ones(entries, entries, dtype=torch.bool, device=device).tril()
    own_NN = torch.eye(entries, dtype=torch.bool, device=device)
    return torch.cat([earlier_NN, *[own_NN] * step], 1)


class UnrolledKeys:
    """Keys and values of a row's entries at every step so far; `tempspec.interfaces.Keys`.

    Rows need no padding mask: no entry sees one after it.

    Args:
        position_BN: the rotary positions of the entries at step 0.
        document_BN: the document that each entry belongs to, where a row holds several; None for one.
    """

    def __init__(self, position_BN: Tensor, document_BN: Tensor | None = None) -> None:
        self.position_BN = position_BN
        self._document_BN = document_BN
        self._step = 0
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._mask: Tensor | None = None

    def copy(self) -> "UnrolledKeys":
        """The same keys, to which a step may be added that these do not get."""
        made = UnrolledKeys(self.position_BN, self._document_BN)
        made._step, made._kept = self._step, {layer: list(kept) for layer, kept in self._kept.items()}
        return made

    def advance(self) -> None:
        """Begin the next step: every entry is one token on."""
        self._step += 1
        self.position_BN = self.position_BN + 1
        self._mask = None

    def attend(self, query_BAND: Tensor, key_BGND: Tensor, value_BGND: Tensor, layer: int = 0) -> Tensor:
        """Keep the step's keys and values and attend to all that its entries see, `[B, A, N, D]`.

        Args:
            query_BAND: the queries.
            key_BGND: the keys; each serves A / G heads of queries.
            value_BGND: the values.
            layer: which of the head's layers asks.
        """
        kept = self._kept.setdefault(layer, [])
        kept.append((key_BGND, value_BGND))
        plain = self._step == 0 and self._document_BN is None
        return scaled_dot_product_attention(
            query_BAND,
            torch.cat([key for key, _ in kept], -2),
            torch.cat([value for _, value in kept], -2),
            attn_mask=None if plain else self._visible(),
            is_causal=plain,
            enable_gqa=query_BAND.shape[1] != key_BGND.shape[1],
        )

    def _visible(self) -> Tensor:
        """The mask of the step in flight, made once for all layers."""
        if self._mask is None:
            entries, device = self.position_BN.shape[-1], self.position_BN.device
            self._mask = visible(entries, self._step, device)
            if self._document_BN is not None:
                same_BNN = self._document_BN[:, :, None] == self._document_BN[:, None]
                self._mask = (self._mask & same_BNN.repeat(1, 1, self._step + 1))[:, None]
        return self._mask
