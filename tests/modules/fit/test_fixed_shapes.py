"""The loss as one compiled function of a chunk gives what whole logits give, or runs uncompiled and says why."""

import warnings

import pytest
import torch

from tempspec.modules.fit.fixed_shapes import FixedShapes, fixed_length
from tempspec.modules.fit.objective import chunked, plain
from tempspec.modules.outputs import LogitPairs
from tempspec.plugins import divergences as plugins
from tests.modules.fit.test_objective import TOKENS, VOCABULARY, objective, project, sides, value_and_gradients


class Curious(plugins.ForwardKL):
    """It reads a value on the host, which no compiled function can."""

    def per_position(self, logp_BTV, logq_BTV):
        value_BT = super().per_position(logp_BTV, logq_BTV)
        return value_BT if bool(value_BT.isfinite().all()) else value_BT.nan_to_num()


class Sudden(plugins.TotalVariation):
    """It looks at the step, which would be compiled into the function."""

    def in_context(self, logp_BTV, logq_BTV, context):
        return self.per_position(logp_BTV, logq_BTV) * (1 + context.step)


def both(divergence, compile, **options):
    target, draft = sides(torch.float32)
    what = objective(divergence, dtype=torch.float32, **options)
    expected = value_and_gradients(lambda draft: plain(project(target), project(draft), what), draft)
    pairs = lambda draft: LogitPairs(target, draft, VOCABULARY, 16)  # noqa: E731
    found = value_and_gradients(lambda draft: chunked(pairs(draft), what, compile), draft)
    return (*found[0], *found[1]), (*expected[0], *expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ForwardKL", "JensenShannon", "NegativeLogAcceptance"])
def test_a_compiled_chunk_gives_the_plain_value_and_gradients(name):
    assert TOKENS % 16  # the last chunk is padded
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the loss runs uncompiled")
        found, expected = both(getattr(plugins, name)(scale="gradient"), True, label_weight=0.25)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


def test_what_cannot_be_compiled_runs_eagerly_and_says_so_once():
    divergence = Curious()
    with pytest.warns(UserWarning, match="the loss runs uncompiled, as torch.compile says"):
        found, expected = both(divergence, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = both(divergence, True)
    for one, other, third in zip(found, expected, again, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
        assert torch.equal(one, third)


def test_a_loss_that_looks_at_the_step_is_never_compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = both(Sudden(), True)
    torch.testing.assert_close(found[0], expected[0])


def test_a_use_that_was_refused_is_known():
    def refuses(value):
        raise RuntimeError("no more")

    shapes = FixedShapes(refuses)
    assert shapes.takes("a")
    with pytest.warns(UserWarning, match="uncompiled"):
        assert shapes("a", torch.ones(1)) is None
    assert not shapes.takes("a")
    assert shapes.takes("b")


@pytest.mark.parametrize("tokens", [1, 17, 300, 5000, 10**5])
@pytest.mark.parametrize("vocabulary", [32_000, 49_152, 128_256])
def test_chunks_have_few_lengths(tokens, vocabulary):
    length = fixed_length(tokens, vocabulary, "cuda")
    assert length & (length - 1) == 0
    assert length * vocabulary <= 2**27
    assert length >= min(tokens, 1024)
