"""A turned product equals the layer it stands for, and the model is left as it was."""

import pytest
import torch
from torch import nn

from tempspec.models.fast_linear import LEAST_WEIGHTS, MOST_TOKENS, ThinProducts, thin_linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3), (1, MOST_TOKENS), (1, MOST_TOKENS + 1), (3, 1, 2)])
def test_equals_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(24, 40, bias=bias).double()
    x = torch.randn(*shape, 24, dtype=torch.float64)
    found = thin_linear(layer, x)
    assert found.shape == layer(x).shape
    assert found.is_contiguous()
    torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-12)


def test_takes_strided_inputs() -> None:
    layer = nn.Linear(24, 40)
    x = torch.randn(24, 3, 2).permute(2, 1, 0)
    torch.testing.assert_close(thin_linear(layer, x), layer(x))


def test_turns_inside_alone() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(2, 2), nn.Linear(256, 256).to(torch.bfloat16))
    thin = ThinProducts(model)
    assert model[0].weight.numel() >= LEAST_WEIGHTS
    before = [dict(vars(layer)) for layer in model]
    with thin.turned(2):
        assert ["forward" in vars(layer) for layer in model] == [True, False, False]
    for tokens in (1, MOST_TOKENS + 1):  # nothing to gain
        with thin.turned(tokens):
            assert "forward" not in vars(model[0])
    with pytest.raises(RuntimeError, match="shapes"), thin.turned(2):
        model(torch.ones(2, 3))
    assert [dict(vars(layer)) for layer in model] == before


def test_leaves_layers_that_others_changed() -> None:
    layer = nn.Linear(256, 256)
    layer.forward = lambda x: 2 * x  # as accelerate's hooks do
    with ThinProducts(layer).turned(3):
        assert layer(torch.ones(1)).item() == 2
    assert layer(torch.ones(1)).item() == 2


def test_weights_are_read_when_used() -> None:
    layer = nn.Linear(256, 256, bias=False)
    with ThinProducts(layer).turned(3):
        layer.weight = nn.Parameter(torch.eye(256))
        x = torch.randn(1, 3, 256)
        torch.testing.assert_close(layer(x), x)
