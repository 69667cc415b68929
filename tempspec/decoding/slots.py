"""What the engine knows of the rows in flight: host lists for decisions, device tensors for the batch (floor 4).

Axes: S slots, B the first slots up to the last active one, T token buffer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tempspec.interfaces import Completion, LastRound, Request


class RoundCounts(NamedTuple):
    """How a row's last round went, and all so far; before the first these defaults.

    Attributes:
        limit: tokens that the rule allowed.
        drafted: tokens drafted.
        accepted: tokens accepted.
        all_tested: tokens tested in all rounds so far.
        all_accepted: tokens accepted in all rounds so far.
    """

    limit: int = -1
    drafted: int = -1
    accepted: int = -1
    all_tested: int = 0
    all_accepted: int = 0

    def then(self, limit: int, drafted: int, tested: int, accepted: int) -> "RoundCounts":
        """Those after another round."""
        return RoundCounts(limit, drafted, accepted, self.all_tested + tested, self.all_accepted + accepted)


@dataclass(slots=True)
class ActiveRow:
    """One request in flight.

    Attributes:
        request: the request.
        completion: what it has emitted so far.
        length: tokens so far, prompt included; the caches hold all but the last.
        end: the length at which it is finished.
        draft_cached: tokens that the draft's cache holds.
        last: how its last round went.
    """

    request: Request
    completion: Completion
    length: int
    end: int
    draft_cached: int
    last: RoundCounts = field(default_factory=RoundCounts)


@dataclass(frozen=True, slots=True)
class Laws:
    """Per-row sampling parameters of the first B slots, on the device; None where no row asks for it."""

    target_temperature_B: Tensor
    draft_temperature_B: Tensor
    top_k_B: Tensor | None
    top_p_B: Tensor | None
    min_p_B: Tensor | None
    seed_B: Tensor
    greedy: bool
    most_k: int
    cut_draft_B: Tensor | None = None

    @property
    def truncation(self) -> dict[str, Any]:
        """The keywords of `core.sampling.log_law`, for the target."""
        return self._cuts | {"most_k": self.most_k}

    @property
    def _cuts(self) -> dict[str, Tensor | None]:
        return {"top_k_B": self.top_k_B, "top_p_B": self.top_p_B, "min_p_B": self.min_p_B}

    @property
    def draft_truncation(self) -> dict[str, Any]:
        """The same for the draft, whose law some rows leave whole."""
        if self.cut_draft_B is None:
            return self.truncation
        whole = {"top_k_B": 0, "top_p_B": 1.0, "min_p_B": 0.0}
        given = {name: cut_B for name, cut_B in self._cuts.items() if cut_B is not None}
        left = {name: cut_B.where(self.cut_draft_B, whole[name]) for name, cut_B in given.items()}
        return left | {"most_k": self.most_k}


@dataclass(slots=True)
class Slots:
    """The rows of the batch and their token buffer.

    Args:
        token_ST: the token buffer, with room for a round's padding after the longest row; any ids are in it at first.
        whole: whether the batch is always all slots.
        idle: what the length of an empty slot is taken for: the most that any round catches up on.
    """

    token_ST: Tensor
    whole: bool = False
    idle: int = 2
    rows: list[ActiveRow | None] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with an empty batch."""
        self.rows = [None] * len(self.token_ST)

    @property
    def free(self) -> list[int]:
        """Indices of empty slots."""
        return [index for index, row in enumerate(self.rows) if row is None]

    @property
    def batch(self) -> list[ActiveRow | None]:
        """The slots up to the last active one, or all: what a forward pass covers."""
        if self.whole:
            return self.rows[:]
        last = max((index for index, row in enumerate(self.rows) if row is not None), default=-1)
        return self.rows[: last + 1]

    def lengths(self) -> list[int]:
        """Tokens of each row of the batch; an empty slot counts as `idle`."""
        return [row.length if row else self.idle for row in self.batch]

    def rounds(self) -> Tensor:
        """The rounds that each row of the batch has had, int64 on the device."""
        return self.integers([row.completion.target_calls if row else 0 for row in self.batch])

    def integers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """A list of the host, or a list of lists, as int64 on the device."""
        return torch.tensor(values, dtype=torch.int64, device=self.token_ST.device)

    def write_prompts(self, members: Sequence[int]) -> None:
        """Put the prompts of some slots that are filled into the token buffer, by one transfer.

        What comes after a prompt is zeros: a round writes there before it reads.
        """
        prompts = [row.request.prompt for index in members if (row := self.rows[index]) is not None]
        longest = max(map(len, prompts))
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        self.token_ST[self.integers(members), :longest] = self.integers(padded)

    def laws(self) -> Laws:
        """The sampling parameters of the batch; call again when a row joins or the batch shrinks."""
        requests = [row.request if row else _IDLE for row in self.batch]
        targets = [request.target_temperature for request in requests]
        drafts = [request.proposal_temperature for request in requests]

        def optional(values: list[float], neutral: float, dtype: torch.dtype = torch.float32) -> Tensor | None:
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=self.token_ST.device)

        return Laws(
            torch.tensor(targets, dtype=torch.float32, device=self.token_ST.device),
            torch.tensor(drafts, dtype=torch.float32, device=self.token_ST.device),
            optional([request.top_k for request in requests], 0, torch.int64),
            optional([request.top_p for request in requests], 1),
            optional([request.min_p for request in requests], 0),
            self.integers([request.seed for request in requests]),
            greedy=0 in targets or 0 in drafts,
            most_k=max((request.top_k for request in requests), default=0),
            cut_draft_B=optional([request.cut_draft for request in requests], True, torch.bool),
        )

    def first_alike(self, members: Sequence[int], *, conditioned: bool) -> dict[int, int]:
        """For each of some slots the first one with the same prompt, itself where there is none before it.

        Args:
            members: slots that are filled.
            conditioned: whether the draft reads a prompt otherwise at another temperature.
        """
        first: dict[tuple[tuple[int, ...], float], int] = {}
        found = {}
        for index in members:
            if (row := self.rows[index]) is not None:
                temperature = row.request.proposal_temperature if conditioned else 0.0
                found[index] = first.setdefault((tuple(row.request.prompt), temperature), index)
        return found

    def last_round(self) -> LastRound:
        """How the batch's last round went; on the host, where limits are decided."""
        counts = [row.last if row else RoundCounts() for row in self.batch]
        return LastRound(*torch.tensor(counts, dtype=torch.int64).T)


_IDLE = Request((0,), target_temperature=1.0)
