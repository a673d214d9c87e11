"""How messages quote and suggest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.wording import SHOWN_CHARACTERS, did_you_mean, show, suggestion


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "nothing"),
        (True, "`true`"),
        (0.5, "`0.5`"),
        ("20%", "`20%`"),
        ({}, "an empty map"),
        ({"a": 1}, "a map"),
        ((), "an empty list"),
        ([1], "a list"),
        ("a\nb\x1b[31m", "`a\\nb\\x1b[31m`"),
        ("x" * 61, f"`{'x' * 60}…`"),
    ],
)
def test_show(value: object, expected: str) -> None:
    """Values are shown in YAML's words, one line long."""
    assert show(value) == expected


@given(st.text())
def test_show_is_short_and_printable(text: str) -> None:
    """Whatever text a recipe holds, a terminal can show the quotation."""
    shown = show(text)
    assert shown.isprintable()
    assert len(shown) <= SHOWN_CHARACTERS + 3


def test_did_you_mean() -> None:
    """A near miss is found whatever its letter case; a far one is not."""
    assert did_you_mean("Hed", ["tail", "head"]) == "head"
    assert did_you_mean("weights", ["tail", "head"]) is None
    assert did_you_mean("x" * 10**6, ["tail", "head"]) is None


def test_suggestion() -> None:
    """The nearest name, or all of them, or that there are none."""
    assert suggestion("hed", ["head", "tail"], "expected") == "did you mean `head`?"
    assert suggestion("foo", ["head", "tail"], "expected") == "expected: `head`, `tail`"
    assert suggestion("foo", [], "parameters") == "there are no parameters"
