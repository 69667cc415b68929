import pickle

import pytest
import torch

from tempspec.metrics.acceptance_grid import AcceptanceGrid

# N positions, A target temperatures, D draft temperatures
TARGET, DRAFT = [0.0, 0.5, 1.0], [0.0, 1.0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    alpha_NAD = torch.rand(50, 3, 2, generator=generator)
    row_NA = [torch.rand(50, 3, generator=generator) for _ in range(3)]
    key_N = torch.randint(8, (50,), generator=generator)
    return [alpha_NAD, *row_NA, key_N, torch.ones(50)]


def make(*batches):
    grid = AcceptanceGrid(TARGET, DRAFT, replicates=40)
    for batch in batches:
        grid.update(*batch)
    return grid


def test_means_are_token_weighted(batch):
    found = make(batch).grid()
    for a, target in enumerate(TARGET):
        for d, draft in enumerate(DRAFT):
            assert found.acceptance[target, draft].value == pytest.approx(batch[0][:, a, d].double().mean().item())
        for name, value_NA in zip(("argmax", "match", "entropy"), batch[1:4], strict=True):
            assert getattr(found, name)[target].value == pytest.approx(value_NA[:, a].double().mean().item())
    assert found.acceptance[0.5, 1.0].prompts == 8


def test_fillers_count_for_nothing_whatever_they_hold(batch):
    weight_N = (torch.arange(50) < 30).float()
    padded = [torch.where(weight_N.view(-1, *[1] * (x.dim() - 1)) > 0, x, torch.nan) for x in batch[:4]]
    real = [x[:30] for x in batch]
    assert make([*padded, batch[4], weight_N]).grid() == make(real).grid()


def test_batches_and_ranks_add_up(batch):
    whole = make(batch)
    split = make([x[:20] for x in batch], [x[20:] for x in batch])
    merged = make([x[:20] for x in batch])
    merged.merge_state(make([x[20:] for x in batch]))
    for other in (split, merged, pickle.loads(pickle.dumps(whole))):
        for name, value in whole.compute().items():
            torch.testing.assert_close(other.compute()[name], value)


def test_compute_has_the_grid_s_shape(batch):
    shapes = {name: tuple(value.shape) for name, value in make(batch).compute().items()}
    assert shapes == {"acceptance": (3, 2, 4), "argmax": (3, 4), "match": (3, 4), "entropy": (3, 4)}


def test_each_prompts_own_sums_add_up_to_the_grid_in_any_batches(batch):
    whole, split = make(batch), make([x[:20] for x in batch], [x[20:] for x in batch])
    found = split.by_prompt()
    for (metric, target, draft), sums in found.items():
        for mine, other in zip(sums, whole.by_prompt()[metric, target, draft], strict=True):
            torch.testing.assert_close(mine, other)
        estimates = getattr(whole.grid(), metric)
        expected = estimates[target, draft] if metric == "acceptance" else estimates[target]
        assert (sums.numerator_US.sum() / sums.denominator_US.sum()).item() == pytest.approx(expected.value)
        assert len(sums.key_U) == expected.prompts
    assert len(found) == 3 * (2 + 3)
    split.reset()
    assert all(len(sums.key_U) == 0 for sums in split.by_prompt().values())
