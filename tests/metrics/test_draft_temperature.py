import pytest
import torch

from tempspec.core.acceptance import acceptance_grid
from tempspec.metrics.draft_temperature import DraftTemperatureFit

TARGETS = [0.0, 0.5, 1.0, 1.37]


def fitted(logits_p_NV, logits_q_NV):
    fit = DraftTemperatureFit(TARGETS)
    alpha_NAD = acceptance_grid(logits_p_NV, logits_q_NV, fit.target_temperatures, fit.candidates)
    rows = len(logits_p_NV)
    fit.update(alpha_NAD, torch.arange(rows) % 5, torch.ones(rows))
    return fit.fits()


def logits(seed, rows=40):
    return 3 * torch.randn(rows, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_the_fit_never_accepts_less_than_the_same_temperature(scale):
    for best in fitted(logits(0), scale * (logits(0) + 0.5 * logits(1))):
        assert best.acceptance.value >= best.same.value


def test_equal_laws_are_fitted_by_the_same_temperature():
    for best in fitted(logits(0), logits(0)):
        assert best.draft_temperature == best.target_temperature
        assert best.acceptance.value == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_draft_that_is_too_sharp_or_too_flat_is_set_right(scale):
    by_target = {best.target_temperature: best for best in fitted(logits(0), scale * logits(0))}
    for target in (0.5, 1.0):
        assert by_target[target].draft_temperature == pytest.approx(scale * target)


def test_a_flat_draft_is_best_at_argmax_for_a_greedy_target():
    assert fitted(logits(0), 0.1 * logits(0))[0].draft_temperature == 0.0


def test_filler_rows_count_nothing():
    fit = DraftTemperatureFit([1.0], [0.5])
    fit.update(torch.tensor([[[0.9, 0.1]], [[0.0, 1.0]]]), torch.tensor([7, 8]), torch.tensor([1.0, 0.0]))
    assert fit.fits()[0].draft_temperature == 0.5
    assert fit.text() == [7]
