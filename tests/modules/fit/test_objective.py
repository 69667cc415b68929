from dataclasses import replace

import pytest
import torch

from tempspec.interfaces import LossContext
from tempspec.modules.fit.objective import Objective, chunked, plain
from tempspec.modules.outputs import HiddenStates, LogitPairs, chunk_length
from tempspec.plugins import divergences as plugins
from tests.built_ins import built_in

OPTIONS = {
    "WeightedSum": {"terms": {"kl": plugins.ForwardKL(), "label": plugins.LabelCrossEntropy(), "taid": plugins.TAID()}}
}
TOKENS, WIDTH, VOCABULARY, PADDED = 23, 5, 17, 20
TEMPERATURES = {
    "one": lambda: torch.tensor(1.3, dtype=torch.float64).expand(1, TOKENS),
    "per token": lambda: torch.linspace(0.3, 2.0, TOKENS, dtype=torch.float64)[None],
    "a grid": lambda: torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)[:, None].expand(3, TOKENS),
    "a grid per token": lambda: torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(7)).double() + 0.3,
}


def sides(dtype=torch.float64, *, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    target = HiddenStates(random(TOKENS, WIDTH + 2), random(PADDED, WIDTH + 2))
    draft = HiddenStates(random(TOKENS, WIDTH), random(PADDED, WIDTH), random(PADDED) if bias else None)
    return target, draft


def objective(divergence=None, temperatures="a grid per token", label_weight=0.0, dtype=torch.float64):
    target_GN = TEMPERATURES[temperatures]().to(dtype)
    weight_N = torch.arange(TOKENS, dtype=dtype) % 4
    label_N = torch.arange(TOKENS) % VOCABULARY
    share_G = torch.full((len(target_GN),), 1 / len(target_GN), dtype=dtype)
    return Objective(
        plugins.ForwardKL() if divergence is None else divergence,
        target_GN,
        1.5 * target_GN,
        share_G,
        weight_N,
        LossContext(step=3, total_steps=9, label_BT=label_N[None]),
        label_weight,
    )


def project(head, vocabulary=VOCABULARY):
    return torch.nn.functional.linear(*head)[:, :vocabulary]


def leaves(draft):
    return HiddenStates(*(None if part is None else part.detach().clone().requires_grad_() for part in draft))


def value_and_gradients(function, draft):
    draft = leaves(draft)
    result = function(draft)
    inputs = [part for part in draft if part is not None]
    return result, torch.autograd.grad(0.3 * result.total, inputs)


@pytest.mark.parametrize("scale", ["none", "gradient"])
@pytest.mark.parametrize("temperatures", TEMPERATURES)
@pytest.mark.parametrize("name", built_in("divergences"))
def test_chunks_give_the_plain_value_and_gradients(name, temperatures, scale):
    divergence = getattr(plugins, name)(**OPTIONS.get(name, {}), scale=scale)
    target, draft = sides()
    what = objective(divergence, temperatures, label_weight=0.25)
    expected, slopes = value_and_gradients(lambda draft: plain(project(target), project(draft), what), draft)
    for chunk in (1, 7, TOKENS, 99):
        got, found = value_and_gradients(
            lambda draft, c=chunk: chunked(LogitPairs(target, draft, VOCABULARY, c), what), draft
        )
        for one, other in zip((*got, *found), (*expected, *slopes), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_derivative_is_that_of_the_value():
    target, draft = sides()
    what = objective(plugins.JensenShannon(scale="gradient"))

    def total(*draft):
        return chunked(LogitPairs(target, HiddenStates(*draft), VOCABULARY, 4), what).total

    assert torch.autograd.gradcheck(total, tuple(leaves(draft)))


@pytest.mark.parametrize("scale", ["none", "gradient"])
def test_learned_temperatures_get_their_gradient(scale):
    target, draft = sides()
    what = objective(plugins.ForwardKL(scale=scale))
    slopes = []
    for run in (
        lambda what: plain(project(target), project(draft), what),
        lambda what: chunked(LogitPairs(target, draft, VOCABULARY, 5), what),
    ):
        theta = torch.tensor([1.0, 0.8], dtype=torch.float64, requires_grad=True)
        learned = replace(what, target_GN=theta[0] * what.target_GN, draft_GN=theta[1] * what.draft_GN)
        run(learned).total.backward()
        slopes.append(theta.grad)
    torch.testing.assert_close(slopes[0], slopes[1])
    assert slopes[0].abs().min() > 0


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precision(dtype, autocast):
    target, draft = sides(dtype)
    what = objective(plugins.NegativeLogAcceptance(), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, slopes = value_and_gradients(lambda draft: plain(project(target), project(draft), what), draft)
        got, found = value_and_gradients(lambda draft: chunked(LogitPairs(target, draft, VOCABULARY, 6), what), draft)
    tolerance = 1e-5 if dtype == torch.float32 and not autocast else 3e-2
    torch.testing.assert_close(got.total, expected.total, rtol=tolerance, atol=tolerance)
    for one, other in zip(found, slopes, strict=True):
        assert one.dtype == other.dtype == dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_tokens_of_weight_zero_may_hold_anything():
    target, draft = sides()
    what = objective()
    wild = draft._replace(hidden_NH=draft.hidden_NH.clone())
    wild.hidden_NH[what.weight_N == 0] = torch.nan
    expected, slopes = value_and_gradients(lambda draft: chunked(LogitPairs(target, draft, VOCABULARY, 6), what), draft)
    got, found = value_and_gradients(lambda draft: chunked(LogitPairs(target, draft, VOCABULARY, 6), what), wild)
    torch.testing.assert_close(got.total, expected.total)
    assert found[0][what.weight_N > 0].isfinite().all()
    torch.testing.assert_close(found[0][what.weight_N > 0], slopes[0][what.weight_N > 0])


def test_gradients_add_up_over_several_calls():
    target, draft = sides()
    what = objective()
    leaf = leaves(draft)
    for _ in range(2):
        chunked(LogitPairs(target, leaf, VOCABULARY, 6), what).total.backward()
    _, slopes = value_and_gradients(lambda draft: chunked(LogitPairs(target, draft, VOCABULARY, 6), what), draft)
    torch.testing.assert_close(leaf.weight_VH.grad, 2 * slopes[1] / 0.3)


def test_no_tokens_have_no_loss():
    target, draft = (HiddenStates(side.hidden_NH[:0], side.weight_VH) for side in sides())
    what = objective().part(slice(0, 0))
    got, found = value_and_gradients(lambda draft: chunked(LogitPairs(target, draft, VOCABULARY), what), draft)
    assert got.total == 0
    assert got.loss_N.shape == (0,)
    assert not found[1].any()


def test_a_chunk_is_never_tiny():
    assert chunk_length(10**9) == 16


@pytest.mark.parametrize(("memory", "whole"), [(80 * 10**9, True), (24 * 10**9, False)])
def test_what_a_gpu_has_room_for_is_not_cut(memory, whole):
    assert (chunk_length(49_152, "cuda", 8192, memory) == 8192) == whole
    assert chunk_length(49_152, "cpu", 8192, memory) == chunk_length(49_152, "cpu")
