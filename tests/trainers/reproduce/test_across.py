"""Means and shares over seeds, against plain arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.stats import Estimate, mean
from trainers.reproduce.across import across, share

T2 = 4.302652729911275  # Student's t, 2 degrees of freedom, 95 % two-sided (SciPy's t.ppf(0.975, 2))


def estimate(value: float, half: float = 0.05) -> Estimate:
    """With an interval of hands."""
    return Estimate(value, value - half, value + half, 100)


def test_three_seeds() -> None:
    """The mean, and the textbook's interval, where it is wider than what the hands say."""
    found = across([estimate(0.1), estimate(0.2), estimate(0.36)])
    assert found is not None
    deviation = math.sqrt(sum((x - 0.22) ** 2 for x in (0.1, 0.2, 0.36)) / 2)
    half = T2 * deviation / math.sqrt(3)
    assert found.value == pytest.approx(0.22)
    assert (found.low, found.high) == (pytest.approx(0.22 - half, abs=1e-6), pytest.approx(0.22 + half, abs=1e-6))
    assert found.single == (0.1, 0.2, 0.36)


def test_equal_seeds() -> None:
    """They are as uncertain as their problems, seen independently; where those say nothing, nothing is known."""
    found = across([estimate(0.2), estimate(0.2)])
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.2 - 0.05 / 2**0.5), pytest.approx(0.2 + 0.05 / 2**0.5))
    unknown = across([Estimate(0.2, -math.inf, math.inf, 1)] * 2)
    assert unknown is not None
    assert (unknown.low, unknown.high, unknown.sign) == (-math.inf, math.inf, 0)
    part = share([estimate(0.1), estimate(0.05)], [estimate(0.2), estimate(0.1)])
    assert part is not None
    assert (part.value, part.high) == (pytest.approx(0.5), pytest.approx(0.5 + 0.05 * 2**0.5 / 0.3))


def test_uneven_problems() -> None:
    """Each side has its own bound; where one seed's is not known, the interval is that over seeds."""
    found = across([Estimate(0.0, 0.0, 0.03, 100), Estimate(0.0, 0.0, 0.04, 100)], (0.0, 1.0))
    assert found is not None
    assert (found.low, found.high) == (0.0, pytest.approx(0.025))
    some = across([estimate(0.1), Estimate(0.3, -math.inf, math.inf, 1)])
    plain = mean([0.1, 0.3], range(2))
    assert some is not None
    assert (some.low, some.high) == (plain.low, plain.high)


def test_one_seed() -> None:
    """Its own interval, that of the hands."""
    found = across([estimate(0.2)])
    assert found is not None
    assert (found.value, found.low, found.high, found.seeds) == (0.2, pytest.approx(0.15), 0.25, 1)


def test_bounds_and_nothing() -> None:
    """An accuracy's interval stays between 0 and 1; of no seeds there is nothing; nan is no seed."""
    found = across([estimate(0.01), estimate(0.9)], (0.0, 1.0))
    assert found is not None
    assert (found.low, found.high) == (0.0, 1.0)
    assert across([]) is None
    assert across([estimate(math.nan)]) is None


def test_share() -> None:
    """The ratio of sums, with the linearised interval of a ratio."""
    gains, losses = (0.06, 0.08, 0.10), (0.2, 0.1, 0.3)
    found = share([*map(estimate, gains)], [*map(estimate, losses)])
    assert found is not None
    value = sum(gains) / sum(losses)
    residuals = [gain - value * loss for gain, loss in zip(gains, losses, strict=True)]
    error = math.sqrt(3 / 2 * sum(r * r for r in residuals)) / sum(losses)
    assert found.value == pytest.approx(value)
    assert found.high - found.value == pytest.approx(T2 * error, rel=1e-6)


def test_share_of_one_seed() -> None:
    """The gain's interval in units of the loss."""
    found = share([estimate(0.1)], [estimate(0.2)])
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, pytest.approx(0.25), pytest.approx(0.75))


def test_share_of_no_loss() -> None:
    """Where nothing was lost there is no share."""
    assert share([estimate(0.1)], [estimate(-0.2)]) is None
    assert share([estimate(0.1), estimate(0.1)], [estimate(0.1), estimate(-0.1)]) is None
    assert share([], []) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_mean_lies_in_its_interval(values: list[float]) -> None:
    """And among the seeds' values."""
    found = across([estimate(value) for value in values])
    assert found is not None
    assert found.low <= found.value <= found.high
    assert min(values) - 1e-12 <= found.value <= max(values) + 1e-12
