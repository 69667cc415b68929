"""The Poisson bootstrap over prompts: intervals whose states are sums (floor 4).

Tokens of one prompt are not independent, so the prompt is what is resampled. Each prompt draws its weight in each
replicate from Poisson(1), a pure function of (prompt key, replicate): no list of prompts is kept to resample from,
states add across batches, ranks and resumed runs, and two metrics over the same prompts share their weights, which
makes their difference a paired one. Poisson weights replace the multinomial ones of Efron (1979): Chamandy,
Muralidharan, Najmi and Naidu, "Estimating Uncertainty for Massive Data Streams", 2012.

This module knows no metric and no row.

Axes: N observations, S entries of a vector metric, R replicates, W = 1 + R (column 0 has weight 1: the point
estimate), M distinct (prompt, entry) pairs.
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from tempspec.core.noise import Stream, uniform

__all__ = [
    "FEWEST",
    "REPLICATES",
    "Estimate",
    "Sums",
    "bootstrap_compute",
    "bootstrap_update",
    "contrast_estimate",
    "difference_estimate",
    "paired_quotient",
    "replicate_weights",
    "running_product",
    "same_prompts",
    "tokens_per_round",
]

REPLICATES = 1000
"""Replicates by default: the 2.5% quantile then rests on 25 of them."""

FEWEST = 6
"""Prompts that an interval needs. No replicate lies outside of the prompts' own values, and the range of n values holds
their median with `1 - 2^(1-n)`: less than 95% with five or fewer."""

_TAIL = 0.025
_POISSON_CDF = torch.tensor([math.exp(-1) / math.factorial(k) for k in range(20)], dtype=torch.float64).cumsum(0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval over prompts.

    Attributes:
        value: the point estimate; NaN where nothing was counted.
        low: lower end; NaN with fewer than `FEWEST` prompts.
        high: upper end; NaN with fewer than `FEWEST` prompts.
        prompts: how many distinct prompts it rests on.

    >>> rate = Estimate(0.7132, 0.6904, 0.7351, prompts=40)
    >>> str(rate), rate.point(), f"{rate:+}"
    ('.713 [.690, .735]', '.713', '+.713 [.690, .735]')
    >>> str(Estimate(2.5, math.nan, math.nan, prompts=1)), str(Estimate.nothing())
    ('2.50', '-')
    """

    value: float
    low: float
    high: float
    prompts: int

    @classmethod
    def nothing(cls) -> "Estimate":
        """The estimate from no observation."""
        return cls(math.nan, math.nan, math.nan, 0)

    def complement(self) -> "Estimate":
        """1 - value, with its interval.

        >>> str(Estimate(0.7, 0.6, 0.9, prompts=4).complement())
        '.300 [.100, .400]'
        """
        return Estimate(1 - self.value, 1 - self.high, 1 - self.low, self.prompts)

    def point(self, spec: str = "") -> str:
        """The value with three significant digits, `-` for NaN; `spec` may be `+` to show the sign."""
        return "-" if math.isnan(self.value) else _number(self.value, self._decimals(), spec)

    def interval(self) -> str:
        """The interval in brackets with the value's decimals, empty where there is none."""
        if math.isnan(self.low):
            return ""
        return f"[{_number(self.low, self._decimals())}, {_number(self.high, self._decimals())}]"

    def to_dict(self) -> dict[str, float | int]:
        """The fields by name."""
        return asdict(self)

    def _decimals(self) -> int:
        """Decimals of three significant digits, at most three."""
        return sum(abs(self.value) < bound for bound in (1, 10, 100))

    def __format__(self, spec: str) -> str:
        return f"{self.point(spec)} {self.interval()}".rstrip()

    def __str__(self) -> str:
        return format(self)


def _number(value: float, decimals: int, spec: str = "") -> str:
    """A fixed-point number without the zero before the point, and without a negative zero."""
    text = f"{round(value, decimals) + 0.0:{spec}.{decimals}f}"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


@dataclass(frozen=True, slots=True)
class Sums:
    """Everything that intervals are computed from; `+` merges two disjoint sets of observations.

    Attributes:
        numerator_SW: weighted sums, float64.
        denominator_SW: weighted sums, float64.
        seen_M2: int64 pairs (prompt key, entry) with a positive denominator; repetitions mean nothing.
    """

    numerator_SW: Tensor
    denominator_SW: Tensor
    seen_M2: Tensor

    @property
    def prompt_M(self) -> Tensor:
        """The prompt's key of each pair of `seen_M2`."""
        return self.seen_M2[:, 0]

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.numerator_SW + other.numerator_SW,
            self.denominator_SW + other.denominator_SW,
            torch.cat([self.seen_M2, other.seen_M2]),
        )


def replicate_weights(key_N: Tensor, replicates: int = REPLICATES) -> Tensor:
    """How often each prompt counts in each replicate: Poisson(1), float64 `[N, R]`.

    A pure function of (key, replicate), by inversion of the Poisson law; fewer replicates are a prefix of more.

    Args:
        key_N: the prompts' keys, int64.
        replicates: R.

    >>> replicate_weights(torch.tensor([7, 8, 7]), 4).int().tolist()
    [[1, 1, 2, 2], [0, 2, 1, 1], [1, 1, 2, 2]]
    """
    replicate_R = torch.arange(replicates, device=key_N.device)
    uniform_NR = uniform(key_N[:, None], replicate_R, Stream.BOOTSTRAP)
    return torch.searchsorted(_POISSON_CDF.to(key_N.device), uniform_NR, right=True).double()


def bootstrap_update(numerator_NS: Tensor, denominator_NS: Tensor, key_N: Tensor, replicates: int = REPLICATES) -> Sums:
    """The sums of one batch of observations.

    Args:
        numerator_NS: what was counted, any real dtype.
        denominator_NS: out of how much, at least 0; an observation with 0 does not make its prompt count as seen.
        key_N: each observation's prompt, int64.
        replicates: R.

    >>> numerator, denominator = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0]])
    >>> sums = bootstrap_update(numerator, denominator, torch.tensor([7, 8]), replicates=4)
    >>> sums.numerator_SW.tolist()
    [[4.0, 1.0, 7.0, 5.0, 5.0]]
    """
    prompt_U, where_N = key_N.unique(return_inverse=True)
    shape = (len(prompt_U), numerator_NS.shape[1])
    zeros_US = torch.zeros(shape, dtype=torch.float64, device=key_N.device)
    numerator_US = zeros_US.index_add(0, where_N, numerator_NS.double())
    denominator_US = zeros_US.index_add(0, where_N, denominator_NS.double())
    weight_UR = replicate_weights(prompt_U, replicates)
    weight_UW = torch.cat([torch.ones_like(prompt_U, dtype=torch.float64)[:, None], weight_UR], 1)
    prompt_M, entry_M = (denominator_US > 0).nonzero(as_tuple=True)
    return Sums(numerator_US.T @ weight_UW, denominator_US.T @ weight_UW, torch.stack([prompt_U[prompt_M], entry_M], 1))


def bootstrap_compute(sums: Sums) -> Tensor:
    """Value, low, high and number of prompts of each entry, float64 `[S, 4]`.

    The interval is the 95% expanded percentile interval (Hesterberg, "What Teachers Should Know About the Bootstrap",
    The American Statistician 2015) of the replicates whose denominator is not 0: the percentiles at
    `Phi(-sqrt(n / (n-1)) t)`, t the 97.5% quantile of Student's law with n - 1 degrees of freedom, which makes up for
    what plain percentiles lack with few prompts. NaN with fewer than `FEWEST` distinct prompts.
    """
    return _compute(_ratio(sums.numerator_SW, sums.denominator_SW), _prompts(sums))


def difference_estimate(a: Sums, b: Sums) -> Tensor:
    """`a - b` of two ratios over the same prompts, laid out as `bootstrap_compute`; the interval is paired.

    Raises:
        ValueError: the prompts differ.
    """
    _check_same_prompts(a, b)
    return _compute(_ratio(a.numerator_SW, a.denominator_SW) - _ratio(b.numerator_SW, b.denominator_SW), _prompts(a))


def contrast_estimate(*terms: tuple[float, Sums], among: int = 1) -> Tensor:
    """The weighted sum of ratios, laid out as `bootstrap_compute`.

    Terms over the same prompts share their weights, so that they are paired; terms over different prompts have
    independent ones. The number of prompts is the least of any term.

    Args:
        terms: (weight, ratio), at least one; such as (1, a), (-1, b) for a difference.
        among: out of how many contrasts one is picked by looking: all of their intervals hold at once with 95%
            (Bonferroni; Dunn, "Multiple Comparisons Among Means", 1961). Percentiles so far out would rest on no
            replicate: with more than one, the interval is Student's t with the replicates' standard deviation.

    >>> a = bootstrap_update(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([7]))
    >>> contrast_estimate((1, a), (-1, a)).tolist()
    [[0.0, nan, nan, 1.0]]
    """
    ratios_SW = (weight * _ratio(sums.numerator_SW, sums.denominator_SW) for weight, sums in terms)
    prompts_S = torch.stack([_prompts(sums) for _, sums in terms]).amin(0)
    return _compute(torch.stack(list(ratios_SW)).sum(0), prompts_S, among)


def paired_quotient(a: Sums, b: Sums) -> Sums:
    """`a / b` of two ratios over the same prompts, as sums again: its replicates are the quotients of theirs.

    Raises:
        ValueError: the prompts differ.
    """
    _check_same_prompts(a, b)
    return Sums(_ratio(a.numerator_SW, a.denominator_SW), _ratio(b.numerator_SW, b.denominator_SW), a.seen_M2)


def running_product(sums: Sums) -> Sums:
    """The products of the first 1..S ratios, as sums again: its replicates are the products of theirs.

    After a ratio of 0 the product is 0, also where nothing was counted.

    >>> sums = bootstrap_update(torch.tensor([[4.0, 2.0]]), torch.tensor([[5.0, 4.0]]), torch.tensor([7]), replicates=0)
    >>> running_product(sums).numerator_SW.tolist()
    [[0.8], [0.4]]
    """
    ratio_SW = _ratio(sums.numerator_SW, sums.denominator_SW)
    ended_SW = torch.nn.functional.pad((ratio_SW == 0).cummax(0).values[:-1], (0, 0, 1, 0))
    product_SW = torch.where(ended_SW, 0.0, ratio_SW.cumprod(0))
    return Sums(product_SW, torch.ones_like(product_SW), sums.seen_M2)


def tokens_per_round(sums: Sums) -> Sums:
    """1 and the products of the first 1..S ratios, as sums of one entry: what S drafted tokens are expected to give.

    Args:
        sums: the acceptance of each drafted token where those before it were accepted.

    >>> sums = bootstrap_update(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 2.0]]), torch.tensor([7]), replicates=0)
    >>> tokens_per_round(sums).numerator_SW.tolist()
    [[1.75]]
    """
    total_1W = 1 + running_product(sums).numerator_SW.sum(0, keepdim=True)
    return Sums(total_1W, torch.ones_like(total_1W), sums.seen_M2[sums.seen_M2[:, 1] == 0])


def same_prompts(a: Sums, b: Sums) -> bool:
    """Whether two metrics counted the same prompts, which pairing needs."""
    return torch.equal(a.seen_M2.unique(dim=0), b.seen_M2.unique(dim=0))


def _check_same_prompts(a: Sums, b: Sums) -> None:
    if not same_prompts(a, b):
        got = " and ".join(str(len(sums.prompt_M.unique())) for sums in (a, b))
        raise ValueError(f"paired estimates need the same prompts on both sides, got different sets ({got} prompts)")


def _ratio(numerator_SW: Tensor, denominator_SW: Tensor) -> Tensor:
    """The ratio, NaN where the denominator is 0."""
    return torch.where(denominator_SW > 0, numerator_SW / denominator_SW, torch.nan)


def _prompts(sums: Sums) -> Tensor:
    """Distinct prompts of each entry, int64 `[S]`."""
    return sums.seen_M2.unique(dim=0)[:, 1].bincount(minlength=len(sums.numerator_SW))


def _compute(ratio_SW: Tensor, prompts_S: Tensor, among: int = 1) -> Tensor:
    bound_S2 = ratio_SW.new_full((len(ratio_SW), 2), torch.nan)
    for prompts in prompts_S.unique().tolist():
        if prompts >= FEWEST:
            rows = prompts_S == prompts
            bound_S2[rows] = _bounds(ratio_SW[rows], prompts, _TAIL / among, among > 1)
    return torch.stack([ratio_SW[:, 0], *bound_S2.T, prompts_S.double()], 1)


def _bounds(ratio_SW: Tensor, prompts: int, tail: float, symmetric: bool) -> Tensor:
    """Both ends, `[S, 2]`, of ratios that rest on so many prompts each."""
    reach = math.sqrt(prompts / (prompts - 1)) * student_quantile(tail, prompts - 1)
    if not symmetric:
        tail = NormalDist().cdf(-reach)
        return ratio_SW[:, 1:].nanquantile(ratio_SW.new_tensor([tail, 1 - tail]), dim=1).T
    apart_SR = ratio_SW[:, 1:] - ratio_SW[:, 1:].nanmean(1, keepdim=True)
    half_S1 = reach * apart_SR.square().nanmean(1, keepdim=True).sqrt()
    return ratio_SW[:, :1] + torch.cat([-half_S1, half_S1], 1)


def student_quantile(tail: float, freedom: int) -> float:
    """What Student's t exceeds with probability `tail`: the normal quantile's expansion in 1 / freedom.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5; within 0.6% from five degrees of freedom on,
    down to a tail of 0.0005.

    >>> round(student_quantile(0.025, 23), 3)
    2.069
    """
    z = -NormalDist().inv_cdf(tail)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
