"""The answer is the reference itself, but for white space."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.graders.verdict import right, unparsable, wrong
from evalkit.task import Grade


def fault(reference: str) -> str | None:
    """What is wrong with a reference, or None."""
    return None if reference.strip() else "is empty; give the text of the right answer"


def grade(answer: str, references: Sequence[str]) -> Grade:
    """Right if the answer equals a reference; runs of white space count as one space, letter case counts."""
    text = " ".join(answer.split())
    if not text:
        return unparsable("There is no answer.")
    return right(text) if any(text == " ".join(each.split()) for each in references) else wrong(text)
