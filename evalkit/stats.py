"""Intervals and tests for scores of examples that are not all independent.

Examples of one cluster (a hand of cards in two orders) tend to be solved or missed together. Counting them as
independent makes intervals too narrow, so every standard error here is that of the clusters' totals
(linearisation; Cochran 1977, *Sampling Techniques*, chapter 9A; Liang and Zeger 1986). With clusters of one, each
function is the textbook's for independent observations. Sums are exact (`math.fsum`): results do not depend on order.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import NormalDist

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
ROUNDING = 1e-12  # a standard error below this part of the values is what rounding leaves of zero

Clusters = Sequence[Hashable]  # of each observation, the cluster that it belongs to


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its interval at the level `CONFIDENCE`, and the number of observations.

    Of no observations the value is nan; an interval about which the data say nothing is the whole range.
    """

    value: float
    low: float
    high: float
    n: int

    def json(self) -> dict[str, float | None]:
        """As plain data; what is not finite is None, since JSON has no number for it."""
        return {name: _plain(number) for name, number in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """How much larger the second of two paired scores is, with a two-sided p-value.

    `adjusted` is the p-value after Holm's correction, once there is a family of comparisons.
    """

    p: float
    adjusted: float | None = None


def _plain(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def proportion(successes: Sequence[bool], clusters: Clusters) -> Estimate:
    """The share of successes, with Wilson's interval for the effective number of observations.

    That number is n / (deff w^2): `deff` >= 1 is the design effect, the clustered variance over that of independent
    observations, and w the ratio of Student's quantiles for the clusters' and the observations' degrees of freedom
    (Korn and Graubard 1998, *Survey Methodology* 24, 193-201, with Clopper and Pearson's interval; Wilson's covers
    closer to the level: Franco, Little, Louis and Slud 2019, *J. Survey Statistics and Methodology* 7). Where the
    design effect cannot be seen (all succeed, none does, one cluster) the examples of a cluster count as alike:
    n^2 / sum m_c^2 observations for clusters of m_c (Kish 1965, *Survey Sampling*). Of no observations: nan in [0, 1].
    Raises ValueError where the lengths differ.
    """
    n = len(successes)
    sizes = _totals([1.0] * n, clusters)
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    p = sum(successes) / n
    effective = n * n / math.fsum(m * m for m in sizes.values())
    if 0 < p < 1 and len(sizes) > 1:
        hits = _totals([float(success) for success in successes], clusters)
        variance = _variance([hits[c] - p * sizes[c] for c in sizes]) / (n * n)
        design_effect = max(1.0, variance * (n - 1) / (p * (1 - p)))
        effective = n / design_effect / _widening(len(sizes), n) ** 2
    return Estimate(p, *_wilson(p, effective), n)


def _wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927, JASA 22, 209-212); n need not be whole."""
    scale = 1 + Z * Z / n
    centre = (p + Z * Z / (2 * n)) / scale
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / scale
    return (0.0 if p == 0 else max(0.0, centre - half)), (1.0 if p == 1 else min(1.0, centre + half))


def mean(values: Sequence[float], clusters: Clusters) -> Estimate:
    """The mean, with an interval by the clustered standard error and Student's t with clusters - 1 degrees of freedom.

    One cluster: the interval is infinite. Equal values: it has no width. Of no values, or where one is not finite:
    nan in an infinite interval. Raises ValueError where the lengths differ.
    """
    return ratio(values, [1.0] * len(values), clusters)


def ratio(numerators: Sequence[float], denominators: Sequence[float], clusters: Clusters) -> Estimate:
    """The ratio of two totals (nats to tokens), with an interval as for `mean`.

    R = sum y / sum x; each cluster weighs in with sum (y - R x) / sum x (Cochran 1977, chapter 6). Degenerate cases as
    for `mean`; where the denominators sum to nothing, nan.
    """
    value, influences = _ratio(numerators, denominators)
    return Estimate(value, *_student(value, _standard_error(influences, clusters), clusters), len(numerators))


def paired_mean(a: Sequence[float], b: Sequence[float], clusters: Clusters) -> Difference:
    """The mean of b - a over the same examples, with the interval of `mean` and a p-value by the same t.

    The t-test rather than random sign flips: it agrees with the interval, needs no seed, and differs from the
    flips' p-value by less than their noise where there are a few dozen clusters (Lehmann and Romano 2005, section
    15.2). No difference anywhere: p = 1. The same difference everywhere, which leaves t without a scale:
    p = 2^(1 - clusters), as by sign flips. One cluster: p = 1. Otherwise as for `mean`.
    """
    ones = [1.0] * len(a)
    return paired_ratio(a, ones, b, ones, clusters)


def paired_ratio(
    a: Sequence[float], a_sizes: Sequence[float], b: Sequence[float], b_sizes: Sequence[float], clusters: Clusters
) -> Difference:
    """The difference of two ratios of totals over the same examples: sum b / sum b_sizes - sum a / sum a_sizes.

    Interval, p-value and degenerate cases as for `paired_mean`. Raises ValueError where the lengths differ.
    """
    first, first_influences = _ratio(a, a_sizes)
    second, second_influences = _ratio(b, b_sizes)
    influences = [y - x for x, y in zip(first_influences, second_influences, strict=True)]
    value, error = second - first, _standard_error(influences, clusters)
    count = len(set(clusters))
    if not math.isfinite(value) or count == 1 or value == 0:
        p = 1.0
    elif error <= ROUNDING * (abs(first) + abs(second)):
        p = 2.0 ** (1 - count)
    else:
        p = student_tail(abs(value) / error, count - 1)
    return Difference(value, *_student(value, error, clusters), len(a), p)


def paired_proportion(a: Sequence[bool], b: Sequence[bool], clusters: Clusters) -> Difference:
    """The share of successes in b less that in a, over the same examples.

    Interval: Wald's with a half added to each of the four cells (Agresti and Min 2005, *Statistics in Medicine* 24,
    729-740), its variance that of the clusters' totals, but no less than for independent examples, and widened for few
    clusters as in `proportion`; cut at -1 and 1. The adjustment moves the interval's centre, not `value`.
    p-value: the exact test of `sign_flip_p` on the clusters' totals. No difference anywhere: p = 1, and the interval
    has a width. One cluster of several examples: [-1, 1]. Of no examples: nan in [-1, 1], p = 1.
    Raises ValueError where the lengths differ.
    """
    changes = [int(y) - int(x) for x, y in zip(a, b, strict=True)]
    n = len(changes)
    sizes, sums = _totals([1.0] * n, clusters), _totals([float(change) for change in changes], clusters)
    if n == 0:
        return Difference(math.nan, -1.0, 1.0, 0, 1.0)
    total = sum(changes)
    shrunk = total / (n + 2)
    spread = math.fsum(change * change for change in changes) + 1 - total * shrunk
    if 1 < len(sizes) < n:
        # What the added observations are worth: half of one each at -1 and 1, a whole one at 0.
        added = (1 - shrunk) ** 2 / 2 + (1 + shrunk) ** 2 / 2 + shrunk**2
        clustered = _variance([sums[c] - shrunk * sizes[c] for c in sizes]) * (n - 1) / n
        spread = max(spread, clustered + added)
    half = Z * _widening(len(sizes), n) * math.sqrt(spread) / (n + 2)
    p = sign_flip_p([round(change) for change in sums.values()])
    return Difference(total / n, max(-1.0, shrunk - half), min(1.0, shrunk + half), n, p)


def sign_flip_p(sums: Sequence[int]) -> float:
    """The probability that |sum| is as large or larger when every term's sign is a fair coin's; exact.

    With terms of -1, 0 and 1 it is McNemar's exact test. All signs are counted, in integers, by the totals they
    give: a total is 2 u - t, where t is the sum of all sizes and u that of the terms with a plus.
    """
    sizes = [abs(s) for s in sums if s]
    observed = abs(sum(sums))
    if observed == 0:
        return 1.0
    most = (sum(sizes) - observed) // 2  # u at most this is the lower tail, as heavy as the upper
    ways = [1]  # at u, the number of choices of signs that give it; the terms of size 1 make a row of binomials
    ones = sizes.count(1)
    for u in range(most):
        ways.append(ways[u] * (ones - u) // (u + 1))
    for size in sizes:
        if size > 1:
            ways = [way + (ways[u - size] if u >= size else 0) for u, way in enumerate(ways)]
    return 2 * sum(ways) / (1 << len(sizes))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being several (Holm 1979, *Scandinavian Journal of Statistics* 6, 65-70).

    The k-th smallest of m is multiplied by m - k + 1, and none becomes smaller than one before it.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def student_tail(t: float, freedom: int) -> float:
    """The probability that |T| >= t >= 0 for Student's T: the incomplete beta function I_x(freedom / 2, 1 / 2).

    x = freedom / (freedom + t^2); Abramowitz and Stegun 26.7.1 with 26.5.2. Accurate to 8 digits at least, up to a
    million degrees of freedom.
    """
    if t == 0:
        return 1.0
    a, b = freedom / 2, 0.5
    x, rest = freedom / (freedom + t * t), t * t / (freedom + t * t)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front - a * math.log1p(t * t / freedom) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(x, a, b) / a
    return 1 - front * _beta_fraction(rest, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Steed's forward recurrence."""
    value = step = 1.0
    factor = 1.0  # of the last step: 1 / (1 + d_n factor)
    for n in range(1, 100_000):  # converges in about sqrt(max(a, b)) terms
        m = n // 2
        if n % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        factor = 1 / (1 + d * factor)
        step *= factor - 1
        value += step
        if abs(step) <= 1e-16 * abs(value):
            return value
    raise AssertionError(f"the continued fraction does not converge at x = {x}, a = {a}, b = {b}")


@cache
def student_quantile(freedom: int) -> float:
    """The t that |T| exceeds with probability 1 - `CONFIDENCE`; infinite without degrees of freedom."""
    if freedom == 0:
        return math.inf
    low, high = 0.0, 16.0  # of one degree of freedom it is 12.7
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if student_tail(middle, freedom) > 1 - CONFIDENCE else (low, middle)
    return high


def _totals(values: Sequence[float], clusters: Clusters) -> dict[Hashable, float]:
    """The sum of each cluster's values."""
    members: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(cluster, []).append(value)
    return {cluster: math.fsum(found) for cluster, found in members.items()}


def _variance(residuals: Sequence[float]) -> float:
    """The variance of a sum of independent terms with mean zero, from at least two of them."""
    return len(residuals) / (len(residuals) - 1) * math.fsum(r * r for r in residuals)


def _ratio(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, list[float]]:
    """The ratio of totals, and what each observation adds to its error."""
    if not all(map(math.isfinite, [*numerators, *denominators])) or not (whole := math.fsum(denominators)):
        return math.nan, [math.nan] * len(numerators)
    value = math.fsum(numerators) / whole
    return value, [(y - value * x) / whole for y, x in zip(numerators, denominators, strict=True)]


def _standard_error(influences: Sequence[float], clusters: Clusters) -> float:
    sums = _totals(influences, clusters)
    return math.sqrt(_variance([*sums.values()])) if len(sums) > 1 else math.inf


def _student(value: float, error: float, clusters: Clusters) -> tuple[float, float]:
    if not math.isfinite(value) or not math.isfinite(error):
        return -math.inf, math.inf
    half = student_quantile(len(set(clusters)) - 1) * error
    return value - half, value + half


def _widening(clusters: int, n: int) -> float:
    """What few clusters cost beside the normal quantile, which the intervals for proportions are made for."""
    return 1.0 if clusters == n else student_quantile(clusters - 1) / student_quantile(n - 1)
