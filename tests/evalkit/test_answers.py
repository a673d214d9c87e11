"""The JSON object in an answer."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.answers import BRACKETS, CANDIDATES, REWARDS, SEARCHED, find_object, grade_integer
from evalkit.task import CORRECT, UNPARSABLE

MISSING = "The answer holds no valid JSON object with the key `formula`."
TWICE = "The JSON object has a key twice, so it is unclear what is meant."

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text().filter(lambda key: key != "formula"), json_values, max_size=3),
    st.text(),
    st.text(st.characters(exclude_characters="{[")),
    st.booleans(),
)
def test_an_object_is_found_in_any_prose(others: dict[str, object], before: str, after: str, ascii_only: bool) -> None:
    """Whatever stands before an object, and whatever without braces behind it, the object comes back as it was."""
    found = find_object(before + json.dumps({**others, "formula": "1+2"}, ensure_ascii=ascii_only) + after, "formula")
    assert found == {**others, "formula": "1+2"}


@given(st.text() | st.lists(st.sampled_from([*'{}[]",:\\', '"formula"', "1", "NaN", "\n"])).map("".join))
def test_any_text_gives_an_object_or_a_reason(answer: str) -> None:
    """No text makes it fail; what comes back is an object with the key, or one of the reasons."""
    found = find_object(answer, "formula")
    assert found in (MISSING, TWICE) if isinstance(found, str) else "formula" in found


@pytest.mark.parametrize(
    ("answer", "formula"),
    [
        ('{"formula": "1"}', "1"),
        ('```json\n{\n  "formula": "1"\n}\n```', "1"),
        ('So {x} it is: {"formula": "1"} where {y}, \\boxed{24}.', "1"),
        ('{"formula": "1"} or rather {"formula": "2"}', "2"),
        ('{"formula": "1"} {"formula": "2"', "1"),
        ('{"formula": "1"} {"other": "2"}', "1"),
        ('{"formula": "1", "why": {"because": {}}}', "1"),
        ('{"answer": {"formula": "1"}}', "1"),
        ('{"formula": "1", "not": [{"formula": "2"}]}', "1"),
        ('{"formula": "0"} {"a": {"formula": "1", "not": {"formula": "2"}}}', "1"),
        ('{"formula": "({1})"}', "({1})"),
        ('{"formula": null}', None),
        ('{"formula": "\\ud800"}', "\ud800"),
        ('{"formula": "\\u0000"}', "\0"),
        ('{"number": [1, 2.5e3, -0], "formula": "1"}', "1"),
        ('[{"formula": "1"}]', "1"),
        ("{" * 100_000 + '{"formula": "1"}', "1"),
        ('{"formula": "1"}' + "{x}" * (CANDIDATES - 1), "1"),
        ('{"formula": "1"}' + "[" * BRACKETS, "1"),
        ("x" * 10_000_000 + '{"formula": "1"}', "1"),
        ('{"formula": "1"}' + "x" * (SEARCHED - 16), "1"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_found(answer: str, formula: object) -> None:
    """The last object that has the key counts; fences, prose and other objects around it do not matter."""
    found = find_object(answer, "formula")
    assert not isinstance(found, str)
    assert found["formula"] == formula


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "24",
        "formula: 1",
        '"formula"',
        '["formula"]',
        "{}",
        '{"Formula": "1"}',
        '{"formula": "1"',
        '{"formula": "1}',
        "{'formula': '1'}",
        '{formula: "1"}',
        '{"formula": "1",}',
        '{"formula": "1" // comment\n}',
        '{"formula": "1\n"}',
        '{"formula": "1\0"}',
        '{"formula": NaN}',
        '{"formula": "1", "number": [Infinity]}',
        '{"formula": "1", "number": -Infinity}',
        '{"formula": "1", "number": 01}',
        '{"formula": "1", "number": 1.}',
        '{“formula”: "1"}',
        '{\\"formula\\": \\"1\\"}',
        '{"formula": "\\x41"}',
        '{"formula": 1' + "0" * 10_000 + "}",
        '{"formula": 1' + "0" * 5_000 + "}",
        "{" * 100_000,
        "}" * 100_000,
        "{" * 100_000 + "}",
        '{"formula":' * 100_000 + "}",
        '{"a":' * 500 + "1" + "}" * 500,
        '{"formula": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"formula": ' + "[" * (BRACKETS + 1) + "]" * (BRACKETS + 1) + "}",
        '{"formula": "1"}' + "{x}" * CANDIDATES,
        '{"formula": "1"}' + "x" * SEARCHED,
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_not_found(answer: str) -> None:
    """What is not JSON to the letter is no object, nor is what lies beyond the bounds."""
    assert find_object(answer, "formula") == MISSING


def test_a_key_twice_is_no_answer() -> None:
    """Parsers disagree on which of two equal keys counts, so neither does; in other objects it does no harm."""
    assert find_object('{"formula": "1", "formula": "2"}', "formula") == TWICE
    assert find_object('{"formula": "1", "x": 1, "x": 2}', "formula") == TWICE
    assert find_object('{"formula": "1"} {"x": 1, "x": 2}', "formula") == {"formula": "1"}


def test_nesting_needs_little_recursion() -> None:
    """What is within the bounds parses when little of Python's recursion limit is left for it."""
    answer = '{"formula": ' + "[" * BRACKETS + "]" * BRACKETS + "}"
    limit = sys.getrecursionlimit()
    depth = 0
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        depth += 1
    sys.setrecursionlimit(depth + 2 * BRACKETS)
    try:
        assert not isinstance(find_object(answer, "formula"), str)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    ("answer", "kind", "reason", "value"),
    [
        ('{"rank": 3}', CORRECT, "The rank is 3.", "3"),
        ('The rank is 4. {"rank": 3}', CORRECT, "The rank is 3.", "3"),
        ('{"rank": 2}', "wrong value", "The rank is not 2.", "2"),
        ('{"rank": 0}', "wrong value", "The rank is not 0.", "0"),
        ('{"rank": -1}', "illegal", "The rank is `-1`, but it can only be from 0 to 4.", None),
        ('{"rank": 5}', "illegal", "The rank is `5`, but it can only be from 0 to 4.", None),
        ('{"rank": "3"}', "illegal", "The rank is `3`, not an integer.", None),
        ('{"rank": 3.0}', "illegal", "The rank is `3.0`, not an integer.", None),
        ('{"rank": 3e0}', "illegal", "The rank is `3.0`, not an integer.", None),
        ('{"rank": true}', "illegal", "The rank is `true`, not an integer.", None),
        ('{"rank": null}', "illegal", "The rank is nothing, not an integer.", None),
        ('{"rank": [3]}', "illegal", "The rank is a list, not an integer.", None),
        ('{"rank": {}}', "illegal", "The rank is an empty map, not an integer.", None),
        (
            '{"rank": 1' + "0" * 4000 + "}",
            "illegal",
            "The rank is an integer of too many digits, but it can only be from 0 to 4.",
            None,
        ),
        ('{"rank": "' + "x" * 8000 + '"}', "illegal", f"The rank is `{'x' * 60}…`, not an integer.", None),
        ("3", UNPARSABLE, "The answer holds no valid JSON object with the key `rank`.", None),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_grade_integer(answer: str, kind: str, reason: str, value: str | None) -> None:
    """Only a JSON integer counts; each kind of failure has its reward and a short reason."""
    grade = grade_integer(answer, "rank", 3, range(5))
    assert (grade.kind, grade.reward, grade.reason, grade.value) == (kind, REWARDS[kind], reason, value)
