"""Which rank sees which row, and a training loader that resumes where it stopped.

Every rank gets the same number of slots, always at least one: an uneven or empty rank would leave the others waiting in
their collectives. Slots that only even out the ranks are flagged as fillers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tempspec.core.noise import fold
from tempspec.errors import UserError


class Slot(NamedTuple):
    """A row to fetch; a filler repeats a row that some rank has already, and must not count."""

    row: int
    filler: bool


class ShardSampler(DistributedSampler[Any]):
    """Rank r of w takes every w-th row, from the r-th on; ranks are equally long, and none is empty.

    It is a `DistributedSampler` because Lightning replaces any other one under DDP.

    Args:
        rows: how many rows there are; 0 gives every rank one filler.
        rank: this process, 0 to `world - 1`.
        world: how many processes there are.
        shuffle: take the rows in an order that is a pure function of (seed, epoch), the same on every rank.
        seed: of the order.

    >>> list(ShardSampler(3, rank=1, world=2))
    [Slot(row=1, filler=False), Slot(row=0, filler=True)]
    """

    def __init__(self, rows: int, *, rank: int = 0, world: int = 1, shuffle: bool = False, seed: int = 0) -> None:
        everything: Any = range(rows)
        super().__init__(everything, num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)
        self.rows = rows
        self.start = 0
        """Slots that the next iteration leaves out, because a run that is resumed has seen them."""

    def __iter__(self) -> Iterator[Slot]:
        order = self._order()
        for place in range(
            self.start * self.num_replicas + self.rank, len(self) * self.num_replicas, self.num_replicas
        ):
            yield Slot(order[place % self.rows] if self.rows else 0, place >= self.rows)

    def __len__(self) -> int:
        return max(1, math.ceil(self.rows / self.num_replicas))

    def _order(self) -> Sequence[int]:
        if not self.shuffle:
            return range(self.rows)
        return fold(self.seed, self.epoch, torch.arange(self.rows)).argsort(stable=True).tolist()


class ResumableLoader(DataLoader[Any]):
    """A training loader whose state Lightning keeps in checkpoints: a run that is resumed sees what it would have seen.

    The epoch is the sampler's, which Lightning sets before an epoch's first batch; so nothing is fetched before that
    batch is asked for. A checkpoint taken at the end of an epoch resumes with the next one.

    Args:
        dataset: rows by `Slot`.
        sampler: the order of the rows.
        batch_size: rows of a batch.
        num_workers: worker processes.
        collate_fn: makes a batch of rows.
        options: anything else that `DataLoader` takes.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        sampler: ShardSampler,
        batch_size: int = 1,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> None:
        # A generator of its own: workers' base seeds would otherwise be drawn from the global one, and a run that is
        # resumed draws once more than one that was never stopped.
        options.setdefault("generator", torch.Generator())
        super().__init__(
            dataset, sampler=sampler, batch_size=batch_size, num_workers=num_workers, collate_fn=collate_fn, **options
        )
        self._order = sampler
        self._epoch = 0
        self._position = 0
        self._resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: nothing runs before the first batch
        self._epoch, self._position = self._order.epoch, self._take_resume()
        self._order.start = self._position * (self.batch_size or 1)
        for batch in super().__iter__():
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, the batches handed out in it, and what decides the order of the rows."""
        return {"epoch": self._epoch, "position": self._position} | self._layout()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take up a state with the next iteration."""
        self._resume = dict(state_dict)

    def _layout(self) -> dict[str, int]:
        order = self._order
        return {
            "rows": order.rows,
            "batch_size": self.batch_size or 1,
            "processes": order.num_replicas,
            "seed": order.seed,
        }

    def _take_resume(self) -> int:
        """The batches to leave out: 0 unless a state was loaded that stopped within this very epoch.

        Raises:
            UserError: the rest of the epoch cannot be told from its beginning, because the order has changed.
        """
        state, self._resume = self._resume, None
        if state is None or state["epoch"] != self._order.epoch or not 0 < state["position"] < len(self):
            return 0
        for name, now in self._layout().items():
            if state[name] != now:
                raise UserError(
                    f"the checkpoint stopped within an epoch with {name} = {state[name]}, got {now}; resume with the "
                    "same data, batch size, seed and number of processes"
                )
        return state["position"]


class WorkItems(Dataset[dict[str, Any]]):
    """The predict work list by `Slot`: `{"items": [...], "filler": bool}`; a filler holds no items.

    A rank without work of its own still takes part, and nothing is done twice.

    Args:
        work: batches of items.
    """

    def __init__(self, work: Sequence[Sequence[Any]]) -> None:
        self.work = work

    def __getitem__(self, slot: Slot) -> dict[str, Any]:
        return {"items": [] if slot.filler else list(self.work[slot.row]), "filler": slot.filler}

    def __len__(self) -> int:
        return len(self.work)


def work_loader(work: Sequence[Sequence[Any]], sampler: ShardSampler) -> DataLoader[Any]:
    """A loader over a work list, one entry a step, of which the sampler takes this rank's share."""
    return DataLoader(WorkItems(work), batch_size=None, sampler=sampler, collate_fn=_unchanged)


def _unchanged(item: Any) -> Any:
    return item
