"""Numbers over seeds: means and shares with intervals, and what one seed can say instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.stats import ROUNDING, Estimate, mean, ratio


@dataclass(frozen=True, slots=True)
class Across:
    """A number with its interval, and the number of each of the `seeds` that it is the mean of.

    Of several seeds the interval is Student's over seeds, so it says what another seed may give, but never narrower
    than the problems of the seeds allow; of one seed it is that of the problems (hands that share their values count
    once), and says nothing about other seeds.
    """

    value: float
    low: float
    high: float
    single: tuple[float, ...]

    @property
    def seeds(self) -> int:
        """How many seeds it is of."""
        return len(self.single)

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on that side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)

    def json(self) -> dict[str, Any]:
        """As plain data; what is not finite is None."""
        plain = {name: getattr(self, name) for name in ("value", "low", "high")}
        kept = {name: number if math.isfinite(number) else None for name, number in plain.items()}
        return {**kept, "seeds": self.seeds, "single": [x if math.isfinite(x) else None for x in self.single]}


def across(found: Sequence[Estimate], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Across | None:
    """The mean over seeds, its interval cut at `bounds`; None of no seeds.

    A few seeds may agree by chance, and a few hits in as many problems do so often. So the half-widths are no less than
    sqrt(sum h^2) / k, those of k independent means with half-widths h by the problems. Where all seeds are equal and
    nothing is known of the problems, neither is the interval: it is infinite.
    """
    known = [each for each in found if math.isfinite(each.value)]
    if not known:
        return None
    single = tuple(each.value for each in known)
    whole = known[0] if len(known) == 1 else _widened(mean(single, range(len(single))), known, len(known))
    return Across(whole.value, max(bounds[0], whole.low), min(bounds[1], whole.high), single)


def share(gains: Sequence[Estimate], losses: Sequence[Estimate]) -> Across | None:
    """The gains in all, as a share of the losses in all: sum of gains / sum of losses, seed by seed in pairs.

    The ratio of sums rather than the mean of ratios, which one seed with hardly a loss would decide. Its interval is
    that of a ratio over seeds (Cochran 1977, chapter 6), widened as by `across` to what the problems allow of the
    gains; of one seed, the gain's interval divided by the loss, which is taken as it is. None where nothing was lost in
    all: then there is no share.
    """
    both = zip(gains, losses, strict=True)
    pairs = [pair for pair in both if all(math.isfinite(each.value) for each in pair)]
    total = math.fsum(loss.value for _, loss in pairs)
    if total <= 0:
        return None
    single = tuple(gain.value / loss.value if loss.value else math.nan for gain, loss in pairs)
    if len(pairs) == 1:
        ((gain, loss),) = pairs
        return Across(single[0], gain.low / loss.value, gain.high / loss.value, single)
    whole = ratio([gain.value for gain, _ in pairs], [loss.value for _, loss in pairs], range(len(pairs)))
    whole = _widened(whole, [gain for gain, _ in pairs], total)
    return Across(whole.value, whole.low, whole.high, single)


def _widened(whole: Estimate, found: Sequence[Estimate], total: float) -> Estimate:
    """An interval over seeds, no narrower than that of the sum of the seeds' values by the problems, over `total`."""
    below = math.hypot(*(max(0.0, each.value - each.low) for each in found)) / total
    above = math.hypot(*(max(0.0, each.high - each.value) for each in found)) / total
    if math.isfinite(below) and math.isfinite(above):
        return Estimate(whole.value, min(whole.low, whole.value - below), max(whole.high, whole.value + above), whole.n)
    spread = max(whole.high - whole.value, whole.value - whole.low)
    if spread > ROUNDING * max(1.0, abs(whole.value)):
        return whole
    return Estimate(whole.value, -math.inf, math.inf, whole.n)
