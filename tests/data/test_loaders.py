from itertools import chain, islice

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from tempspec.data.grouping import LengthGroups
from tempspec.data.loaders import ResumableLoader, ShardSampler, work_loader
from tempspec.errors import UserError

# Python warns of every fork of a process with threads; the workers here touch nothing but tensors.
FORKS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
# One core is enough for what is tested here.
CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
WORKERS = pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[FORKS, CORES])])


class Numbers(Dataset):
    """Rows whose content is their number."""

    def __init__(self, rows):
        self.rows = rows

    def __getitem__(self, slot):
        return torch.tensor([float(slot.row), 1.0])

    def __len__(self):
        return self.rows


def loader(rows=14, *, batch_size=4, workers=0, rank=0, world=1, seed=3, window=0, longest=6, **options):
    groups = LengthGroups(np.arange(rows) * 7 % longest, batch_size * world, window) if window else None
    sampler = ShardSampler(rows, rank=rank, world=world, shuffle=True, seed=seed, groups=groups)
    return ResumableLoader(Numbers(rows), sampler=sampler, batch_size=batch_size, num_workers=workers, **options)


def rows_of(batches):
    return [batch[:, 0].int().tolist() for batch in batches]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 10])
def test_ranks_are_equally_long_and_see_every_row_once(rows, world, shuffle):
    ranks = [list(ShardSampler(rows, rank=rank, world=world, shuffle=shuffle)) for rank in range(world)]
    lengths = {len(slots) for slots in ranks}
    assert len(lengths) == 1
    assert lengths == {len(ShardSampler(rows, rank=0, world=world))} != {0}
    assert sorted(slot.row for slot in chain(*ranks) if not slot.filler) == list(range(rows))
    assert all(0 <= slot.row < max(rows, 1) for slot in chain(*ranks))


def test_ranks_together_walk_the_rows_in_order():
    ranks = [ShardSampler(6, rank=rank, world=2) for rank in range(2)]
    assert [slot.row for pair in zip(*ranks, strict=True) for slot in pair] == list(range(6))


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = ShardSampler(50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return [slot.row for slot in sampler]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


LOADERS = [
    {},
    {"window": 3},
    pytest.param({"workers": 2}, marks=[FORKS, CORES]),
    pytest.param({"workers": 2, "persistent_workers": True, "window": 3}, marks=[FORKS, CORES]),
]


@pytest.mark.parametrize("options", LOADERS, ids=str)
@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5])
def test_a_loader_goes_on_where_it_stopped(cut, options):
    whole = loader(**options)
    expected = rows_of(chain(whole, whole, whole, whole))
    stopped = loader(**options)
    batches = chain(stopped, stopped)
    seen = rows_of(next(batches) for _ in range(cut))
    resumed = loader(**options)
    resumed.load_state_dict(stopped.state_dict())
    rest = rows_of(chain(resumed, resumed))
    assert seen + rest == expected[: cut + 8]
    del batches


@pytest.mark.parametrize("options", LOADERS, ids=str)
@pytest.mark.parametrize("taken", [1, 3, 4])
def test_iterations_that_are_broken_off_lose_and_repeat_nothing(taken, options):
    broken, whole = loader(**options), loader(**options)
    parts = [rows_of(islice(broken, taken)) for _ in range(4)]
    assert list(chain(*parts)) == rows_of(chain(whole, whole, whole, whole))[: 4 * taken]


def test_every_pass_holds_every_row_in_an_order_of_its_own():
    first, same, other = loader(), loader(), loader(seed=4)
    passes = [list(chain(*rows_of(each))) for each in (first, first, same, other)]
    assert all(sorted(rows) == list(range(14)) for rows in passes)
    assert passes[0] == passes[2]
    assert len(set(map(tuple, passes))) == 3


def test_iterating_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(loader())
    assert torch.equal(before, torch.get_rng_state())


CHANGES = [{"rows": 13}, {"batch_size": 3}, {"seed": 4}, {"world": 2}, {"window": 2}, {"window": 0}, {"longest": 5}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_pass_whose_order_has_changed_is_not_resumed(change):
    stopped = loader(window=1)
    next(iter(stopped))
    with pytest.raises(UserError, match="resume with the same data, batch size, seed and number of processes"):
        loader(**{"window": 1} | change).load_state_dict(stopped.state_dict())


def test_a_pass_of_an_earlier_version_goes_on_if_not_grouped():
    state = {"epoch": 0, "position": 1, "rows": 14, "batch_size": 4, "processes": 1, "seed": 3}
    resumed = loader()
    resumed.load_state_dict(state)
    assert rows_of(islice(resumed, 3)) == rows_of(loader())[1:]
    with pytest.raises(UserError, match="group_by_length = 0, got 2"):
        loader(window=2).load_state_dict(state)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_of_a_step_are_of_like_length_on_every_rank(world):
    tokens = np.arange(240)
    ranks = []
    for rank in range(world):
        groups = LengthGroups(tokens, 4 * world, 60)
        ranks.append([slot.row for slot in ShardSampler(240, rank=rank, world=world, shuffle=True, groups=groups)])
    steps = zip(*(torch.tensor(rows).view(-1, 4) for rows in ranks), strict=True)
    assert all(max(map(int, map(torch.max, step))) - min(map(int, map(torch.min, step))) < 4 * world for step in steps)
    assert sorted(chain(*ranks)) == list(range(240))


@pytest.mark.parametrize("change", CHANGES)
def test_between_passes_the_order_may_change(change):
    stopped, resumed = loader(), loader(**change)
    rows_of(stopped)
    resumed.load_state_dict(stopped.state_dict())
    straight = loader(**change)
    rows_of(straight)
    assert rows_of(resumed) == rows_of(straight)


def test_work_is_handed_out_as_it_is():
    work = [object(), object()]
    assert list(work_loader(work)) == work


# ---------------------------------------------------------------------------------------------------------------------
# With a real Trainer
# ---------------------------------------------------------------------------------------------------------------------


class Line(LightningModule):
    """A line fitted by Adam; it remembers the rows that it saw."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append(tuple(batch[:, 0].int().tolist()))
        return (self.layer(batch / 14) - batch[:, :1].cos()).square().mean()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(folder, *, workers=0, resume=None, **options):
    module = Line()
    trainer = Trainer(
        max_steps=9,
        callbacks=[
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1),
        ],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(workers=workers), loader(), ckpt_path=resume)
    return module


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists:UserWarning")
@pytest.mark.parametrize(
    "options",
    [{"limit_val_batches": 0}, {"limit_train_batches": 3, "limit_val_batches": 1, "num_sanity_val_steps": 0}],
    ids=["whole epochs", "shortened epochs with validation"],
)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[FORKS, CORES, pytest.mark.slow])])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, workers, options):
    whole = fit(tmp_path, workers=workers, **options)
    epoch = options.get("limit_train_batches", 4)
    for name, cut in {
        "step=1": 1,
        "step=3": 3,
        "step=4": 4,
        "step=5": 5,
        "epoch=0": epoch,
        "epoch=1": 2 * epoch,
    }.items():
        resumed = fit(tmp_path, workers=workers, resume=tmp_path / f"{name}.ckpt", **options)
        assert resumed.seen == whole.seen[cut:]
        assert torch.equal(resumed.layer.weight, whole.layer.weight)
        assert torch.equal(resumed.layer.bias, whole.layer.bias)
