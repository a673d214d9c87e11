"""What an answer is worth beside reference answers: exactly, purely, and in bounded time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from evalkit.graders import choice, exact, numeric, pattern
from evalkit.graders.verdict import KINDS, MAX_ANSWER, unparsable
from evalkit.task import Grade

__all__ = ["GRADERS", "KINDS", "GraderName", "fault", "grade"]

GraderName = Literal["exact", "numeric", "regex", "choice"]

_FAULTS: Mapping[str, Callable[[str], str | None]] = {
    "exact": exact.fault,
    "numeric": numeric.fault,
    "regex": pattern.fault,
}
_GRADES: Mapping[str, Callable[[str, Sequence[str]], Grade]] = {
    "exact": exact.grade,
    "numeric": numeric.grade,
    "regex": pattern.grade,
}
GRADERS: tuple[GraderName, ...] = get_args(GraderName)


def fault(grader: GraderName, reference: str, choices: Sequence[str] = ()) -> str | None:
    """What is wrong with a reference (`is no number, ...`), or None where `grade` can take it."""
    return choice.fault(reference, choices) if grader == "choice" else _FAULTS[grader](reference)


def grade(grader: GraderName, answer: str, references: Sequence[str], choices: Sequence[str] = ()) -> Grade:
    """What an answer is worth: 1 if any of the references is met, else 0.

    The references are known to be without fault; for `choice` there is one, and it is one of the choices.
    """
    if len(answer) > MAX_ANSWER:
        return unparsable(f"The answer is longer than {MAX_ANSWER:,} characters.")
    return choice.grade(answer, references, choices) if grader == "choice" else _GRADES[grader](answer, references)
