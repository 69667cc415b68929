"""What the rounds of the engine are made of: what one starts from, foresees, and adds to a row (floor 4).

Axes: B rows of the batch, T token buffer.
"""

from dataclasses import dataclass

from torch import Tensor

from tempspec.decoding.noise import RoundNoise
from tempspec.decoding.slots import Laws, Row
from tempspec.interfaces import Completion, DraftLength


@dataclass(frozen=True, slots=True)
class Turn:
    """What one round starts from.

    Attributes:
        rows: the rows of the batch, None in an empty slot.
        laws: their sampling parameters.
        noise: this round's randomness.
        token_BT: prompt and emitted tokens.
        lengths: tokens of each row, on the host.
        length_B: the same on the device.
        limits: the most tokens that each row may draft, on the host.
        limit_B: the same on the device.
        rule: the draft length of this round; None for plain decoding.
    """

    rows: list[Row | None]
    laws: Laws
    noise: RoundNoise
    token_BT: Tensor
    lengths: list[int]
    length_B: Tensor
    limits: list[int]
    limit_B: Tensor
    rule: DraftLength | None


@dataclass(frozen=True, slots=True)
class Foresight:
    """A round's closed forms, on the host; None where the verifier has no such form.

    Attributes:
        acceptance: of every drafted token.
        length: the accepted length.
        distance: TV and KL of a lossy rule's law from the target's at every drafted position.
    """

    acceptance: list[list[float]] | None = None
    length: list[float] | None = None
    distance: tuple[list[list[float]], list[list[float]]] | None = None

    def append(self, completion: Completion, index: int) -> None:
        """Add a row's share to what it has counted, its round already appended."""
        tested = completion.tested[-1]
        if self.acceptance is not None:
            completion.expected.append(sum(self.acceptance[index][:tested]))
        if self.length is not None:
            completion.foreseen.append(self.length[index])
        if self.distance is not None:
            variation, kl = self.distance
            completion.total_variation.append(sum(variation[index][:tested]))
            completion.kl.append(sum(kl[index][:tested]))


def append_round(row: Row, emitted: list[int], drafted: int, tested: int) -> None:
    """Count one round of a row, up to its stop token if it emitted one."""
    completion = row.completion
    accepted = len(emitted) - 1
    stop = next((at for at, token in enumerate(emitted) if token in row.request.stop_ids), None)
    if stop is not None:
        completion.finish = "stop"
        emitted = emitted[: stop + 1]
        if stop < accepted:
            accepted = drafted = tested = stop + 1
    completion.tokens += emitted
    completion.drafted.append(drafted)
    completion.accepted.append(accepted)
    completion.tested.append(tested)
    row.length += len(emitted)


def no_numbers(model: str, row: Row) -> str:
    """The message for a row whose logits are no numbers."""
    return (
        f"the {model}'s logits are NaN or infinite for request {row.request.key or '(no key)'}, behind "
        f"{row.length} tokens: check its weights, or load it in another precision (model.loading.dtype: float32)"
    )
