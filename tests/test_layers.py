"""Layer ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from surgery.layers import MAX_LAYER, LayerRange, LayerRangeField

pairs = st.tuples(st.integers(0, MAX_LAYER), st.integers(0, MAX_LAYER)).map(sorted).map(lambda p: f"{p[0]}-{p[1]}")
singles = st.integers(0, MAX_LAYER)
ends = st.builds(
    "{} {}".format, st.sampled_from(["first", "last"]), st.sampled_from(["25%", "4", "all", "0", "12.5 %"])
)
notations = st.one_of(st.just("all"), pairs, singles, ends, st.lists(pairs | singles, min_size=1, max_size=4))


@pytest.mark.parametrize(
    ("value", "n", "expected"),
    [
        ("all", 3, {0, 1, 2}),
        ("first 25%", 30, set(range(8))),
        ("first 1%", 30, {0}),
        ("last 4", 30, {26, 27, 28, 29}),
        ("last 50%", 5, {2, 3, 4}),
        ("first 40", 3, {0, 1, 2}),
        ("last 0", 3, set()),
        ("last all", 2, {0, 1}),
        ("0-2", 5, {0, 1, 2}),
        (" 1 - 2 ", 5, {1, 2}),
        ("3", 5, {3}),
        (3, 5, {3}),
        (["0-1", 4, "3-4"], 5, {0, 1, 3, 4}),
        ("all", 0, set()),
    ],
)
def test_of(value: object, n: int, expected: set[int]) -> None:
    """Each notation means these layers of a stack of n."""
    assert LayerRange.parse(value).of(n) == expected


@pytest.mark.parametrize(
    ("value", "n", "expected"),
    [
        ("all", 3, [0, 1, 2]),
        ("last 2", 5, [3, 4]),
        (["3-4", "0-1", 4, 4], 9, [3, 4, 0, 1, 4, 4]),
        ("2-4", 3, [2, 3, 4]),
    ],
)
def test_in_order(value: object, n: int, expected: list[int]) -> None:
    """As written, repeated ones as often, and without a look at where the stack ends."""
    assert list(LayerRange.parse(value).in_order(n)) == expected


@given(st.integers(1, 200), st.integers(0, 100))
def test_first_and_last_divide_a_stack(n: int, k: int) -> None:
    """`first k` and `last n-k` are disjoint and together everything."""
    k = min(k, n)
    first, last = LayerRange.parse(f"first {k}").of(n), LayerRange.parse(f"last {n - k}").of(n)
    assert not first & last
    assert first | last == set(range(n))


@given(notations)
def test_plain_reads_back(value: object) -> None:
    """`plain` gives data that parses to the same range."""
    parsed = LayerRange.parse(value)
    assert LayerRange.parse(parsed.plain()) == parsed


@pytest.mark.parametrize("value", ["30", "0-30", ["0-3", "29-31"]])
def test_layers_beyond_the_stack(value: object) -> None:
    """A range that leaves the stack is an error that names the layer and the stack's layers."""
    with pytest.raises(ValueError, match=r"names layer 3[01]; the stack has layers 0-29"):
        LayerRange.parse(value).of(30)


def test_backwards() -> None:
    """A range that runs backwards is refused, with the right way round."""
    with pytest.raises(ValueError, match="`9-0`, which runs backwards; write `0-9`"):
        LayerRange.parse("9-0")


@pytest.mark.parametrize(
    "value", [None, True, 1.5, "", "20%", "frist 4", "-1", -1, [], ["all"], [[0]], {}, "1-", "1-2-3", 10**7, "1" * 9]
)
def test_anything_else_is_refused(value: object) -> None:
    """What is no notation for layers gets a message that lists the notations."""
    with pytest.raises(ValueError, match=r"found .*; expected `all`, `first 25%`, `last 4`"):
        LayerRange.parse(value)


def test_a_wrong_quantity_in_first() -> None:
    """After `first` the message is about the quantity."""
    with pytest.raises(ValueError, match="found `120%`; expected a count"):
        LayerRange.parse("first 120%")


def test_as_a_field() -> None:
    """In a pydantic model a range is read from its notation and dumped as plain data."""
    adapter: TypeAdapter[LayerRange] = TypeAdapter(LayerRangeField)
    assert adapter.dump_python(adapter.validate_python(["0-4", 20])) == ["0-4", "20"]
    assert adapter.dump_python(adapter.validate_python("first 25%")) == "first 25%"
