"""Which rank sees which row, and a training loader that resumes where it stopped (floor 5).

Every rank gets the same number of slots, always at least one: an uneven or empty rank would leave the others waiting in
their collectives. Slots that only even out the ranks are flagged as fillers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tempspec.core.noise import fold
from tempspec.data.grouping import LengthGroups, PromptGroups
from tempspec.errors import UserError


class Fetched(NamedTuple):
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
        groups: puts rows of like length into one step; none by default.

    >>> list(ShardSampler(3, rank=1, world=2))
    [Fetched(row=1, filler=False), Fetched(row=0, filler=True)]
    """

    def __init__(
        self,
        rows: int,
        *,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        groups: LengthGroups | PromptGroups | None = None,
    ) -> None:
        everything: Any = range(rows)
        super().__init__(everything, num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)
        self.rows = rows
        self.groups = groups
        self.start = 0
        """Slots that the next iteration leaves out, because a run that is resumed has seen them."""

    def __iter__(self) -> Iterator[Fetched]:
        order = self.order()
        for place in range(
            self.start * self.num_replicas + self.rank, len(self) * self.num_replicas, self.num_replicas
        ):
            yield Fetched(order[place % self.rows] if self.rows else 0, place >= self.rows)

    def __len__(self) -> int:
        return max(1, math.ceil(self.rows / self.num_replicas))

    def order(self) -> Sequence[int]:
        """The rows as all processes together take them, the first `world` rows first."""
        order_R = torch.arange(self.rows)
        if self.shuffle:
            order_R = fold(self.seed, self.epoch, order_R).argsort(stable=True)
        if self.groups is not None:
            order_R = self.groups.order(order_R, fold(self.seed, self.epoch))
        return order_R.tolist()


class ResumableLoader(DataLoader[Any]):
    """A training loader whose state Lightning keeps in checkpoints: the k-th batch of a run depends on (seed, k) alone.

    It counts its own passes over the rows and resumes where it stopped, whatever the trainer calls an epoch: after a
    resume the trainer's own count may be off, and `limit_train_batches` ends an epoch early. One iteration gives
    `len(loader)` batches, of two passes where it began within one. Nothing is fetched before the first batch is asked
    for, because Lightning iterates before it restores.

    Args:
        dataset: rows by `Fetched`.
        sampler: the order of the rows.
        batch_size: rows of a batch.
        num_workers: worker processes.
        collate_fn: makes a batch of rows.
        options: anything else that `DataLoader` takes.

    Raises:
        UserError: the sampler is another one, which happens under `overfit_batches`.
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
        if not isinstance(sampler, ShardSampler):
            raise UserError("trainer.overfit_batches would repeat other rows; set the train source's `limit` instead")
        # A generator of its own: workers' base seeds would otherwise be drawn from the global one, and a run that is
        # resumed draws once more than one that was never stopped.
        options.setdefault("generator", torch.Generator())
        super().__init__(
            dataset, sampler=sampler, batch_size=batch_size, num_workers=num_workers, collate_fn=collate_fn, **options
        )
        self._order = sampler
        self._rows_a_batch = batch_size
        self._epoch = 0
        self._position = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: nothing runs before the first batch
        due = len(self)
        while due:
            for batch in islice(self._rest_of_pass(), due):
                due -= 1
                self._count()
                yield batch

    def state_dict(self) -> dict[str, int]:
        """The pass over the rows, the batches handed out in it, and what decides the order of the rows."""
        return {"epoch": self._epoch, "position": self._position} | self._layout()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from a state.

        Raises:
            UserError: it lies within a pass whose rest cannot be told, because the order has changed.
        """
        for name, now in self._layout().items():
            then = state_dict.get(name, 0)  # a checkpoint of an earlier version knows no groups, and had none
            if state_dict["position"] and then != now:
                raise UserError(
                    f"the checkpoint stopped within an epoch with {name} = {then}, got {now}; resume with "
                    "the same data, batch size, seed and number of processes"
                )
        self._epoch, self._position = state_dict["epoch"], state_dict["position"]

    def _rest_of_pass(self) -> Iterator[Any]:
        self._order.set_epoch(self._epoch)
        self._order.start = self._position * self._rows_a_batch
        return super().__iter__()

    def _count(self) -> None:
        """Count a batch as handed out; the last of a pass counts as the beginning of the next."""
        self._position += 1
        if self._position == len(self):
            self._epoch, self._position = self._epoch + 1, 0

    def _layout(self) -> dict[str, int]:
        order = self._order
        return {
            "rows": order.rows,
            "batch_size": self._rows_a_batch,
            "processes": order.num_replicas,
            "seed": order.seed,
            "group_by_length": order.groups.window if order.groups else 0,
            "lengths": order.groups.digest() if order.groups else 0,
        }


def work_loader(work: Sequence[Any]) -> DataLoader[Any]:
    """A loader that hands every process all passes of a work list, as they are, one per step."""
    passes: Any = list(work)
    return DataLoader(passes, batch_size=None, collate_fn=_unchanged)


def _unchanged(item: Any) -> Any:
    return item
