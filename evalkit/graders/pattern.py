"""The answer holds what a regular expression describes."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from evalkit.graders.verdict import right, unparsable, wrong
from evalkit.task import Grade

SECONDS = 0.5  # for one answer; an ordinary search takes microseconds, a catastrophic one for ever
MAX_PATTERN = 1_000  # characters, which also bounds the time of compiling


def fault(reference: str) -> str | None:
    """What is wrong with a pattern, or None."""
    if not reference:
        return "is an empty pattern, which every answer matches"
    if len(reference) > MAX_PATTERN:
        return f"is a pattern of {len(reference):,} characters; at most {MAX_PATTERN:,} are taken"
    try:
        regex.compile(reference)
    except regex.error as error:
        return f"is no regular expression: {error}; see the documentation of the package `regex`"
    except (RecursionError, OverflowError, MemoryError):
        return "is a regular expression that nests or repeats too much"
    return None


def grade(answer: str, references: Sequence[str]) -> Grade:
    """Right if a pattern is found anywhere in the answer, letter case as the pattern says; its value is what matched.

    The patterns share half a second evenly. One that does not come to an end counts as one that is not found; should
    no other match, the answer is unparsable. This is the one grade that can depend on the machine's speed.
    """
    late = False
    for pattern in references:
        try:
            found = regex.search(pattern, answer, timeout=SECONDS / len(references))
        except TimeoutError:
            late = True
            continue
        if found is not None:
            return right(found.group())
    if late:
        return unparsable(f"Searching the answer took longer than {SECONDS} s.")
    return wrong(None, "The answer does not have the form or the content asked for.")
