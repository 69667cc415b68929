"""The laws that every divergence keeps (floor 3).

Axes: B batch, T positions, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from tempspec.interfaces import Divergence, LossContext
from tempspec.testing.errors import ConformanceError

__all__ = ["check_divergence"]

_BATCH, _POSITIONS, _VOCABULARY = 2, 3, 6
_DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def check_divergence(divergence: Divergence, *, stops_gradient: bool = False, cross_entropy: bool = False) -> None:
    """Hold a divergence to every law of its family, on laws with zeros, ties and disjoint supports.

    Args:
        divergence: an instance, as a configuration would make it.
        stops_gradient: pass True for a divergence that holds a part of itself constant, whose gradient is therefore
            not the derivative of its value; all other laws remain.
        cross_entropy: pass True for a cross-entropy, which is not 0 at p = q and may look at labels (the target's most
            likely tokens, here) instead of the target's law; all other laws remain.

    Raises:
        ConformanceError: a law fails; it says which, where and by how much.

    >>> from tempspec.plugins.divergences import JensenShannon
    >>> check_divergence(JensenShannon(beta=0.3))
    """
    for law in _LAWS:
        law(divergence)
    if not cross_entropy:
        _zero_at_equality(divergence)
        _nan_of_the_target(divergence)
    if not stops_gradient:
        _derivative(divergence)


# ---------------------------------------------------------------------------------------------------------------------
# Pairs of logits [B, T, V]; -inf marks a zero of the law
# ---------------------------------------------------------------------------------------------------------------------


def _random(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Random logits of the target and of the draft."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn((2, _BATCH, _POSITIONS, _VOCABULARY), generator=generator, dtype=torch.float64)
    return both[0].to(dtype), both[1].to(dtype)


def _forbid(logits_BTV: Tensor, *tokens: int) -> Tensor:
    """The logits with some tokens impossible."""
    index = torch.tensor(tokens, dtype=torch.int64)
    return logits_BTV.index_fill(-1, index, -torch.inf)


def _pairs(dtype: torch.dtype = torch.float64) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names, target logits and draft logits: ordinary laws and every edge."""
    p, q = _random(dtype)
    yield "random laws", p, q
    yield "laws that are nearly one-hot (temperature 0.02)", p / 0.02, q / 0.02
    yield "uniform laws", torch.zeros_like(p), torch.zeros_like(q)
    yield "p = q", p, p.clone()
    yield "p = q, both with zeros", _forbid(p, 1, 4), _forbid(p, 1, 4)
    yield "p = q, both one-hot", _forbid(p, 1, 2, 3, 4, 5), _forbid(p, 1, 2, 3, 4, 5)
    yield "p with zeros", _forbid(p, 0, 3), q
    yield "q with zeros", p, _forbid(q, 0, 3)
    yield "p and q with zeros, some shared", _forbid(p, 0, 1), _forbid(q, 1, 2)
    yield "one-hot p (temperature 0)", _forbid(p, 1, 2, 3, 4, 5), q
    yield "one-hot q (temperature 0)", p, _forbid(q, 1, 2, 3, 4, 5)
    yield "disjoint supports", _forbid(p, 0, 1, 2), _forbid(q, 3, 4, 5)


def _value(divergence: Divergence, p: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """The divergence of two tensors of logits, both softened by a temperature, `[B, T]`."""
    logp, logq = (p / temperature).log_softmax(-1), (q / temperature).log_softmax(-1)
    return divergence(logp, logq, temperature, _context(logp))


def _context(logp: Tensor) -> LossContext:
    """The middle of a run, on a text of the target's most likely tokens."""
    return LossContext(step=5, total_steps=10, label_BT=logp.argmax(-1))


def _gradient(divergence: Divergence, p: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """The gradient of the summed divergence with respect to the draft's logits, `[B, T, V]`."""
    q = q.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_value(divergence, p, q, temperature).sum(), q)
    return gradient


def _scaled(divergence: Divergence, scale: str) -> Divergence:
    """A copy with another `scale`."""
    if not hasattr(divergence, "scale"):
        law = "a divergence has the option `scale`"
        raise ConformanceError(law, type(divergence).__name__, "it has none: call super().__init__(scale)")
    other = copy.copy(divergence)
    other.scale = scale  # type: ignore[assignment]
    return other


def _require_close(law: str, where: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise unless two tensors agree within a tolerance, relative where more than 1 is expected; infinities match."""
    expected = expected.to(got.dtype)
    size = expected.abs().nan_to_num(nan=1.0, posinf=1.0).clamp(min=1.0)
    gap = torch.where(got == expected, 0.0, (got - expected).abs() / size).nan_to_num(nan=torch.inf, posinf=torch.inf)
    if bool((gap > tolerance).any()):
        raise ConformanceError(law, where, f"off by {float(gap.max()):.3g}, allowed {tolerance:.3g}")


# ---------------------------------------------------------------------------------------------------------------------
# Laws of the value
# ---------------------------------------------------------------------------------------------------------------------


def _one_value_per_position(divergence: Divergence) -> None:
    law = "one floating-point value per position, [B, T]"
    for dtype in _DTYPES:
        value = _value(divergence, *_random(dtype))
        if value.shape != (_BATCH, _POSITIONS) or not value.is_floating_point():
            got = f"got {value.dtype} of {list(value.shape)}, expected {[_BATCH, _POSITIONS]}"
            raise ConformanceError(law, f"random laws in {dtype}", got)


def _inputs_are_left_alone(divergence: Divergence) -> None:
    law = "equal inputs give equal outputs, and the inputs are left alone"
    for where, p, q in _pairs():
        logp, logq = p.log_softmax(-1), q.log_softmax(-1)
        before = logp.clone(), logq.clone()
        first, second = (divergence(logp, logq, 1.0, _context(logp)) for _ in range(2))
        _require_close(law, f"{where}, target", logp, before[0], 0.0)
        _require_close(law, f"{where}, draft", logq, before[1], 0.0)
        _require_close(law, f"{where}, second call", second, first, 0.0)


def _never_negative(divergence: Divergence) -> None:
    for where, p, q in _pairs():
        value = _value(divergence, p, q)
        if not bool((value >= -1e-9).all()):
            raise ConformanceError("the value is never negative, nor NaN", where, f"got {float(value.min())}")


def _positive_apart(divergence: Divergence) -> None:
    value = _value(divergence, *_random())
    if not bool((value > 1e-6).all()):
        raise ConformanceError("the value is positive where p differs from q", "random laws", f"got {value.min():.3g}")


def _zero_at_equality(divergence: Divergence) -> None:
    for where, p, q in _pairs():
        if where.startswith("p = q"):
            value, gradient = _value(divergence, p, q), _gradient(divergence, p, q)
            _require_close("the value is 0 at p = q", where, value, torch.zeros_like(value), 1e-9)
            _require_close("the gradient is 0 at p = q", where, gradient, torch.zeros_like(gradient), 1e-9)


def _order_of_vocabulary(divergence: Divergence) -> None:
    order = torch.arange(_VOCABULARY).roll(2)
    for where, p, q in _pairs():
        got = _value(divergence, p[..., order], q[..., order])
        law = "the order of the vocabulary does not matter"
        _require_close(law, where, got, _value(divergence, p, q), 1e-9)


def _impossible_tokens(divergence: Divergence) -> None:
    law = "tokens that both laws forbid (a padded vocabulary) change nothing"
    for where, p, q in _pairs():
        wide_p, wide_q = (torch.nn.functional.pad(logits, (0, 2), value=-torch.inf) for logits in (p, q))
        _require_close(law, where, _value(divergence, wide_p, wide_q), _value(divergence, p, q), 1e-9)


def _masking_is_indexing(divergence: Divergence) -> None:
    law = "a position's value does not depend on other positions: masking equals indexing"
    keep = torch.tensor([0, 2], dtype=torch.int64)
    for where, p, q in _pairs():
        got, expected = _value(divergence, p, q)[:, keep], _value(divergence, p[:, keep], q[:, keep])
        _require_close(law, where, got, expected, 1e-9)


def _nan_is_not_hidden(divergence: Divergence) -> None:
    p, q = _random()
    _require_nan(_value(divergence, p, q * torch.nan), "NaN logits of the draft")


def _nan_of_the_target(divergence: Divergence) -> None:
    p, q = _random()
    _require_nan(_value(divergence, p * torch.nan, q), "NaN logits of the target")


def _require_nan(value: Tensor, where: str) -> None:
    if not bool(value.isnan().all()):
        raise ConformanceError("NaN stays NaN", where, f"got {float(value.nan_to_num().max())}")


# ---------------------------------------------------------------------------------------------------------------------
# Laws of precision
# ---------------------------------------------------------------------------------------------------------------------


def _wide_arithmetic(divergence: Divergence) -> None:
    law = "bfloat16 laws are computed with in float32 or better"
    for where, p, q in _pairs(torch.bfloat16):
        logp, logq = p.log_softmax(-1), q.log_softmax(-1)
        context = _context(logp)
        got, expected = divergence(logp, logq, 1.0, context), divergence(logp.float(), logq.float(), 1.0, context)
        _require_close(law, where, got.float(), expected, 1e-5)


def _precisions_agree(divergence: Divergence) -> None:
    for where, p, q in _pairs():
        got = _value(divergence, p.float(), q.float())
        _require_close("float32 agrees with float64", where, got, _value(divergence, p, q), 1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Laws of the gradient
# ---------------------------------------------------------------------------------------------------------------------


def _finite_gradient(divergence: Divergence) -> None:
    for dtype in _DTYPES:
        for where, p, q in _pairs(dtype):
            gradient = _gradient(divergence, p, q)
            wrong = int((~gradient.isfinite()).sum())
            if wrong:
                by = f"{wrong} of {gradient.numel()} entries are NaN or infinite"
                raise ConformanceError("the gradient is finite, also at zeros of p and q", f"{where} in {dtype}", by)


def _derivative(divergence: Divergence) -> None:
    p, q = _random()
    try:
        gradcheck(lambda logits: _value(divergence, p, logits), (q.requires_grad_(),))
    except GradcheckError as error:
        law = "the gradient is the derivative of the value (pass stops_gradient=True if it is not meant to be)"
        raise ConformanceError(law, "random laws in float64", str(error).splitlines()[0]) from error


def _descent(divergence: Divergence) -> None:
    p, q = _random()
    before = _value(divergence, p, q)
    after = _value(divergence, p, q - 1e-3 * _gradient(divergence, p, q))
    if not bool((after < before).all()):
        by = f"rose by up to {float((after - before).max()):.3g}"
        raise ConformanceError("a small step against the gradient lowers the value", "random laws", by)


def _temperature_factor(divergence: Divergence) -> None:
    p, q = _random()
    plain, scaled = _scaled(divergence, "none"), _scaled(divergence, "gradient")
    logp, logq = p.log_softmax(-1), q.log_softmax(-1)
    context = _context(logp)
    one = plain(logp, logq, 1.0, context)
    _require_close("scale='none' ignores the temperature", "T = 2", plain(logp, logq, 2.0, context), one, 1e-12)
    law = "scale='gradient' changes nothing at T = 1"
    _require_close(law, "T = 1", scaled(logp, logq, 1.0, context), one, 1e-12)
    taus = torch.tensor([[0.5], [2.0]], dtype=p.dtype)
    rows = [
        scaled(logp[i : i + 1], logq[i : i + 1], float(tau), _context(logp[i : i + 1])) for i, tau in enumerate(taus)
    ]
    law = "temperatures of rows, [B, 1], act row by row"
    _require_close(law, "T = 0.5 and 2", scaled(logp, logq, taus, context), torch.cat(rows), 1e-9)
    hot, hotter = (float(_gradient(scaled, p, q, tau).norm()) for tau in (100.0, 200.0))
    if not 0.9 < hotter / hot < 1.1:
        law = "scale='gradient' keeps the gradient's size when T grows: gradient_order is the power that does"
        raise ConformanceError(law, "T = 100 against T = 200", f"it changes by a factor of {hotter / hot:.3g}")


_LAWS: tuple[Callable[[Divergence], None], ...] = (
    _one_value_per_position,
    _never_negative,
    _inputs_are_left_alone,
    _positive_apart,
    _nan_is_not_hidden,
    _precisions_agree,
    _wide_arithmetic,
    _order_of_vocabulary,
    _impossible_tokens,
    _masking_is_indexing,
    _finite_gradient,
    _descent,
    _temperature_factor,
)
