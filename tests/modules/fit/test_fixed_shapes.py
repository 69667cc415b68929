"""The loss as one compiled function of a chunk gives what whole logits give, or runs uncompiled and says why."""

import warnings
from dataclasses import replace

import pytest
import torch

from tempspec.core.sparse import draw, top_k
from tempspec.core.vocabulary import draft_ids
from tempspec.errors import UserError
from tempspec.interfaces import LossContext
from tempspec.modules.fit.fixed_shapes import FixedShapes, fixed_length, padded_target
from tempspec.modules.fit.objective import Objective, chunked, plain, value_and_slope
from tempspec.modules.outputs import HiddenStates, LogitPairs, SharedLogits
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


# -- heads and cached teachers -----------------------------------------------------------------------------------------

IDS = torch.tensor([1, 2, 5, 11, 16])


def some_tokens(draft):
    """A draft that knows a few of the tokens."""
    return HiddenStates(draft.hidden_NH, draft.weight_VH[: len(IDS)])


def cases():
    """Both sides and the objective, by what is unlike a language model with its target in memory."""
    (target, draft), what = sides(torch.float32), objective(temperatures="one", dtype=torch.float32)
    steps = torch.cat([torch.arange(TOKENS), torch.arange(TOKENS - 5), torch.arange(TOKENS - 9)])
    own = HiddenStates(draft.hidden_NH[steps].roll(1, 0), *draft[1:])
    each = replace(what, target_GN=what.target_GN[:, steps], draft_GN=what.draft_GN[:, steps])
    each = replace(each, weight_N=what.weight_N[steps], context=LossContext(3, 9, what.context.label_BT[:, steps]))
    few = replace(each, ids_R=IDS, context=LossContext(3, 9, draft_ids(each.context.label_BT, IDS)))
    z_p = project(target)
    top, drawn = top_k(z_p, 6, [0.5, 1.3, 2.0]), draw(torch.rand(TOKENS, 4).double(), z_p, 1.3, [1.3])
    shared = {"place_N": steps}
    return {
        "a head": (LogitPairs(target, own, VOCABULARY, 16, **shared), each),
        "some tokens": (LogitPairs(target, some_tokens(own), VOCABULARY, 16, IDS, **shared), few),
        "some, renormalised": (
            LogitPairs(target, some_tokens(own), VOCABULARY, 16, IDS, **shared),
            replace(few, renormalised=True),
        ),
        "top tokens": (LogitPairs(top, draft, VOCABULARY, 16), what),
        "sampled tokens": (LogitPairs(drawn, draft, VOCABULARY, 16), what),
        "a text alone": (
            LogitPairs(torch.empty(TOKENS, 0), draft, VOCABULARY, 16),
            Objective(
                what.divergence, *(torch.empty(0, TOKENS),) * 2, torch.empty(0), what.weight_N, what.context, 1.0
            ),
        ),
    }


def whole(pairs, draft):
    """Both sides' logits of all tokens, each with its own row of the target's."""
    everything = slice(0, len(draft.hidden_NH))
    z_q = replace(pairs, draft=draft).of_draft(everything, pairs.common)
    z_p = pairs.of_target(everything, pairs.common)
    return (z_p.logits_UV[z_p.index_N] if isinstance(z_p, SharedLogits) else z_p), z_q


CASES = pytest.mark.parametrize("case", cases())


@CASES
def test_a_chunks_value_and_slope_are_the_plain_ones(case):
    """The function that is compiled, uncompiled and with padded tokens, against autograd through whole logits."""
    pairs, what = cases()[case]
    what = replace(what, divergence=plugins.JensenShannon(), label_weight=what.label_weight or 0.25)
    z_p, z_q = whole(pairs, pairs.draft)
    leaf = z_q.clone().requires_grad_()
    expected = plain(z_p, leaf, what)
    expected.total.backward()
    everything = slice(0, len(z_q))
    longer = padded_target(pairs.of_target(everything, pairs.common), 64)
    count, pad = len(z_q), 64 - len(z_q)
    more = torch.nn.functional.pad
    padded = replace(
        what,
        target_GN=more(what.target_GN, (0, pad), value=1.0),
        draft_GN=more(what.draft_GN, (0, pad), value=1.0),
        weight_N=more(what.weight_N, (0, pad)),
        context=LossContext(3, 9, more(what.context.label_BT, (0, pad))),
    )
    total, loss, overlap, slope = value_and_slope(padded, longer, more(z_q, (0, 0, 0, pad)))
    torch.testing.assert_close(total, expected.total.detach(), rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(loss[:count], expected.loss_N, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(overlap[:count], expected.overlap_N, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(slope[:count], leaf.grad, rtol=2e-5, atol=2e-6)
    assert not slope[count:].any()


@pytest.mark.slow
@CASES
def test_compiled_chunks_of_heads_and_caches_are_the_plain_ones(case):
    pairs, what = cases()[case]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the loss runs uncompiled")
        found = value_and_gradients(lambda draft: chunked(replace(pairs, draft=draft), what, True), pairs.draft)
    expected = value_and_gradients(lambda draft: plain(*whole(pairs, draft), what), pairs.draft)
    for one, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("case", "says"), [("top tokens", "must be between those"), ("sampled tokens", "must be one")])
def test_a_temperature_that_was_not_kept_is_refused_at_once(case, says):
    """Before any chunk is compiled, which reads no value."""
    pairs, what = cases()[case]
    what = replace(what, target_GN=torch.full((1, TOKENS), 2.5))
    with pytest.raises(UserError, match=says):
        chunked(pairs, what, True)
    with pytest.raises(UserError, match=says):
        plain(*whole(pairs, pairs.draft), what)


def test_whole_logits_of_a_target_are_never_compiled():
    """A head that learns from them, which batches give in as many shapes."""
    pairs, what = cases()["a head"]
    pairs = replace(pairs, target=project(pairs.target))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = chunked(pairs, replace(what, divergence=Curious()), True)
    torch.testing.assert_close(found.total, plain(*whole(pairs, pairs.draft), what).total)


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
