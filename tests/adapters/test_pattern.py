"""Regular expressions of module names: what `re` matches, in a time that no expression can blow up."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.adapters.config import MOST_PATTERNS, Patterns, _pattern_faults
from surgery.adapters.pattern import Pattern

PIECES = ["a", "b", ".", r"\.", "[ab]", "[^a]", "(", ")", "|", "*", "+", "?", "{1,2}", "{2}", "{0,}", "^", "$", "(?:"]
PIECES += [r"\w", r"\<", r"\b{start}", "(a|b)", "*?", "x"]


@given(st.lists(st.sampled_from(PIECES), max_size=7).map("".join), st.lists(st.text("ab.x", max_size=6), max_size=5))
def test_matches_as_re_does(text: str, names: list[str]) -> None:
    """What is taken means the same names as in PEFT, which matches `(.*\\.)?(TEXT)$` from the beginning."""
    try:
        pattern = Pattern(text)
    except ValueError:
        return
    expression = re.compile(rf"(.*\.)?({text})$")
    for name in names:
        assert pattern.matches(name) == bool(expression.match(name))


@pytest.mark.parametrize("text", ["^a", "a$", "a|^b", "^b$", "a$b", "a^b", "$", "^", "(^|x)a", "a{2}", "a{1,2}b{0,}"])
@pytest.mark.parametrize("name", ["", "a", "b", "x.a", "x.b", "ab", "xa", "aa", "aab", "x."])
def test_edges_and_counts(text: str, name: str) -> None:
    """Beginnings and ends are those of the whole name, as `re` has it."""
    assert Pattern(text).matches(name) == bool(re.match(rf"(.*\.)?({text})$", name))


@pytest.mark.parametrize(
    "text",
    [r"layers\.[0-9]+\.(q|v)_proj", r"^model\.layers\.(1|2)\..*", ".*mlp.*", r"self_attn\.[qk]_proj$", "a{2,3}?b"],
)
def test_what_adapters_have_is_taken(text: str) -> None:
    """Expressions as they occur are understood."""
    assert not Pattern(text).matches("model.norm")


@pytest.mark.parametrize(
    "text", ["(a+)+$", "(a|a)*$", "(a*)*b", "(a|aa)+c", "(.*)*(.*)*(.*)*x", "(a|a)" * 40 + "b", "a?" * 60 + "a" * 60]
)
def test_what_backtracks_takes_no_time(text: str) -> None:
    """Of a name of a hundred letters `re` would try more ways than can be tried; here it is over at once."""
    pattern = Pattern(text)
    before = time.process_time()
    pattern.matches("a" * 100 + "!")
    assert time.process_time() - before < 5  # not a speed: the alternative is years


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("(?=a)b", "is no pattern of names"),
        (r"(a)\1", "is no pattern of names"),
        ("(?i)a", "is no pattern of names"),
        ("a++", "is no pattern of names"),
        ("a{2,1}", "is no pattern of names"),
        ("(", "is no pattern of names"),
        (")", "is no pattern of names"),
        ("[z-a]", "is no pattern of names"),
        ("[[a]b", "is no pattern of names"),
        ("a\\", "is no pattern of names"),
        ("(" * 499 + ")" * 499, "is no pattern of names"),
        ("((a{99}){99}){99}", "is no pattern of names"),
        ("x?" * 600, "has 1,200 characters; expected 1,000"),
    ],
)  # fmt: skip
def test_what_is_not_taken(text: str, told: str) -> None:
    """All else is refused, and the reason told."""
    with pytest.raises(ValueError, match=told):
        Pattern(text)


def test_many_expressions() -> None:
    """So many that they would take long all the same are refused; names are not counted."""
    many = {f"x*{i}": 1 for i in range(1 + MOST_PATTERNS)}
    assert list(_pattern_faults("rank_pattern", many, bool)) == [
        "`rank_pattern` has more regular expressions than are taken; write names instead"
    ]
    names = {f"model.layers.{i}.q_proj": i for i in range(20_000)}
    assert list(_pattern_faults("rank_pattern", names, lambda _: True)) == []
    assert Patterns(names).of("model.layers.7.q_proj", 0) == 7
