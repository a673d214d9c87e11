"""Recipes that were built in Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import RecipeError
from surgery.mapping_source import read_mapping, to_yaml
from surgery.source import text_fault
from surgery.yaml_source import read_yaml

printable = st.text(max_size=12).filter(lambda value: text_fault(value) is None)
words = st.sampled_from(
    ["yes", "true", "20%", "1e5", "0x1F", "~", "", "-", "$head", "first 25%", "*.mlp.*", "a: b", "9" * 30]
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
plain = st.recursive(
    scalars | printable | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(printable | words, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(printable | words, plain, max_size=5))
def test_text_reads_back(mapping: dict[str, object]) -> None:
    """The YAML made from plain data is read as the same data, in the same order."""
    source = read_mapping(mapping)
    assert not source.mistakes
    again = read_yaml(source.text, "again")
    assert not again.mistakes
    assert again.data == source.data == mapping
    assert str(again.data) == str(mapping)


def test_block_style() -> None:
    """The text is one that a person would write."""
    text = to_yaml({"name": "x", "steps": [{"op": "linear", "models": ["a", "b"]}]})
    assert text == "name: x\nsteps:\n- op: linear\n  models:\n  - a\n  - b\n"


def test_tuples_and_subclasses() -> None:
    """Tuples become lists, and numbers of NumPy that are Python's floats become floats."""
    data = read_mapping({"a": (1, 2), "b": np.float64(0.5)}).data
    assert data == {"a": [1, 2], "b": 0.5}
    assert isinstance(data, dict)
    assert type(data["b"]) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "recipe a: found `nan`; expected a finite number"),
        (2**63, "recipe a: found an integer beyond 9223372036854775807"),
        ("\ud800", "recipe a: found the character U+D800; expected printable text"),
        ("x" * 10_001, "recipe a: a value of 10,001 characters; expected at most 10,000"),
        ({1, 2}, "recipe a: found a `set`; expected text, a number, a boolean, a list or a map"),
        (b"x", "recipe a: found a `bytes`; expected text, a number, a boolean, a list or a map"),
        ({1: 2}, "recipe a: found a key of the class `int`; expected text"),
        ({"\x1b": 2}, "recipe a: found the character U+001B; expected printable text"),
    ],
)
def test_what_is_no_plain_data(value: object, message: str) -> None:
    """Values that YAML could not hold are noted with their path."""
    source = read_mapping({"a": value})
    assert [str(fault) for fault in source.faults(source.mistakes)] == [message]


def test_endless_and_huge_data() -> None:
    """A list that contains itself, and more values than any recipe has, are refused."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(RecipeError, match="nested deeper than 32 levels"):
        read_mapping({"a": endless})
    with pytest.raises(RecipeError, match="more than 10,000 values"):
        read_mapping({"a": [0] * 10_001})
