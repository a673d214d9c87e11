"""Counts and percentages."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from surgery.quantity import MAX_COUNT, Quantity, QuantityField

counts = st.integers(0, MAX_COUNT)
percents = st.decimals(0, 100, places=12).map(lambda d: f"{d:f}%") | st.integers(0, 100).map(lambda p: f"{p}%")
quantities = st.one_of(counts, percents, st.just("all")).map(Quantity.parse)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        (64, 100, 64),
        ("64", 10, 10),
        (0, 10, 0),
        ("0%", 10, 0),
        ("20%", 4096, 819),
        ("25%", 30, 8),
        ("25%", 2, 1),
        ("12.5 %", 8, 1),
        ("0.1%", 10, 1),
        ("50%", 0, 0),
        (" all ", 7, 7),
        ("100%", 7, 7),
    ],
)
def test_of(text: object, n: int, expected: int) -> None:
    """Counts stop at n; p percent is floor(p n / 100 + 1/2), at least 1 when p > 0 and n > 0."""
    assert Quantity.parse(text).of(n) == expected


@given(st.integers(0, 10**4), st.integers(1, 10**6))
def test_percentages_round_half_up(hundredths: int, n: int) -> None:
    """The rule equals decimal rounding half up, lifted to 1, for every percentage and n."""
    percent = Decimal(hundredths) / 100
    rounded = int((percent * n / 100).to_integral_value(ROUND_HALF_UP))
    assert Quantity.parse(f"{percent}%").of(n) == (max(1, rounded) if percent else 0)


@given(quantities, st.integers(0, 10**6))
def test_of_stays_within_n(quantity: Quantity, n: int) -> None:
    """No quantity of n things is negative or more than n."""
    assert 0 <= quantity.of(n) <= n


@given(quantities)
def test_text_reads_back(quantity: Quantity) -> None:
    """`str` is exact: it parses to the same quantity, twelve decimals included."""
    assert Quantity.parse(str(quantity)) == quantity


def test_percentages_are_exact() -> None:
    """`0.1%` is one in a thousand, not a binary fraction near it."""
    assert Quantity.parse("0.1%").percent == Fraction(1, 10)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-1, "`-1`"),
        (0.2, "`0.2`"),
        (True, "`true`"),
        (None, "nothing"),
        ("", "``"),
        ("101%", "`101%`"),
        ("100.000001%", "`100.000001%`"),
        ("20 percent", "`20 percent`"),
        ("-5%", "`-5%`"),
        ("1e2", "`1e2`"),
        ("٢٠%", "`٢٠%`"),
        ([20], "a list"),
        (10**4000, "an integer of too many digits"),
        ("9" * 500, f"`{'9' * 60}…`"),
    ],
)
def test_anything_else_is_refused(value: object, shown: str) -> None:
    """What is neither a count, a percentage nor `all` is quoted in a message that says what is expected."""
    with pytest.raises(ValueError, match="found") as caught:
        Quantity.parse(value)
    expected = "expected a count such as `64`, a percentage from `0%` to `100%`, or `all`"
    assert str(caught.value) == f"found {shown}; {expected}"


def test_as_a_field() -> None:
    """In a pydantic model a quantity is read from its notation and dumped as text."""
    adapter: TypeAdapter[Quantity] = TypeAdapter(QuantityField)
    assert adapter.dump_python(adapter.validate_python("20%")) == "20%"
    assert adapter.dump_json(adapter.validate_json("7")) == b'"7"'
