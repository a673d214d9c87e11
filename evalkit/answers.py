"""The JSON object in a model's answer, whatever stands around it, and what kinds of answers are worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from evalkit.task import CORRECT, UNPARSABLE, Grade
from surgery.wording import SHOWN_CHARACTERS, show

# What is looked through, so that no answer takes more than a few milliseconds.
SEARCHED = 8192  # characters at the end: over 2,000 tokens, where an object of answer has 40
CANDIDATES = 32  # `{` from the end backwards: the object itself, and a model's after-thoughts in TeX or code
BRACKETS = 200  # `[` behind the `{`, of which any might nest: the parser calls itself for each

ILLEGAL = "illegal"
WRONG_NUMBERS = "wrong numbers"
WRONG_VALUE = "wrong value"
# The scale of Chu et al. 2025 (arXiv 2501.17161), which leaves -3 for whatever cannot be read.
REWARDS: Mapping[str, float] = {CORRECT: 5.0, WRONG_VALUE: -1.0, WRONG_NUMBERS: -2.0, ILLEGAL: -3.0, UNPARSABLE: -3.0}


class _Repeating(dict[str, Any]):
    """An object that has some key twice."""


def find_object(answer: str, key: str) -> dict[str, Any] | str:
    """The last JSON object of an answer that has the key; or a sentence that says why there is none.

    Prose, code fences and other objects around it are passed over. The object itself is JSON to the letter: no
    comments, single quotes, NaN or Infinity. Of objects within each other, the outermost with the key counts. Only the
    last `SEARCHED` characters and `CANDIDATES` braces are tried.
    """
    text = answer[-SEARCHED:]
    text = text[: text.rfind("}") + 1]
    start, last_end = len(text), 0
    last: dict[str, Any] | None = None
    for _ in range(CANDIDATES):
        start = text.rfind("{", 0, start)
        if start < 0 or text.count("[", start) > BRACKETS:
            break
        try:
            found, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if key in found and end > last_end:
            last, last_end = found, end
    if last is None:
        return f"The answer holds no valid JSON object with the key `{key}`."
    return "The JSON object has a key twice, so it is unclear what is meant." if isinstance(last, _Repeating) else last


def grade_integer(answer: str, key: str, truth: int, legal: range) -> Grade:
    """Grade a JSON object whose `key` should be the integer `truth`; other integers within `legal` are wrong values."""
    found = find_object(answer, key)
    if isinstance(found, str):
        return graded(UNPARSABLE, found)
    value = found[key]
    if isinstance(value, bool) or not isinstance(value, int):
        return graded(ILLEGAL, f"The {key} is {quote(value)}, not an integer.")
    if value not in legal:
        return graded(ILLEGAL, f"The {key} is {quote(value)}, but it can only be from {legal[0]} to {legal[-1]}.")
    if value != truth:
        return graded(WRONG_VALUE, f"The {key} is not {value}.", str(value))
    return graded(CORRECT, f"The {key} is {value}.", str(value))


def graded(kind: str, reason: str, value: str | None = None) -> Grade:
    """The grade of a kind of answer on the common scale."""
    return Grade(kind, REWARDS[kind], reason, value)


def quote(value: object) -> str:
    """A part of a model's answer as a reason quotes it: cut short before anything else is done with it."""
    return show(value[: SHOWN_CHARACTERS + 1] if isinstance(value, str) else value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Repeating(made)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse)
