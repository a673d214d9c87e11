"""The three things that a grader can say of an answer."""

from __future__ import annotations

from evalkit.task import CORRECT, UNPARSABLE, Grade
from surgery.wording import show

WRONG = "wrong value"
KINDS = (UNPARSABLE, WRONG)

MAX_ANSWER = 100_000  # characters; no model is asked for this many, so a longer answer is a repetition or an attack
SEARCHED = 16_384  # characters at the end in which a number or a choice is looked for: over 4,000 tokens
MAX_VALUE = 200  # characters of a value that are kept with the grade

# Right is 1 and anything else 0. A user's references know no degrees of failure, and a penalty that is the same for
# every failure would only shift the mean, which advantages subtract again.
RIGHT_REWARD = 1.0
WRONG_REWARD = 0.0


def right(value: str) -> Grade:
    """The answer came to a right value."""
    return Grade(CORRECT, RIGHT_REWARD, "The answer is right.", _short(value))


def wrong(value: str | None, reason: str | None = None) -> Grade:
    """The answer came to another value. The reason goes to the model, so it never tells the reference."""
    reason = f"The answer {show(value)} is not right." if reason is None else reason
    return Grade(WRONG, WRONG_REWARD, reason, None if value is None else _short(value))


def unparsable(reason: str) -> Grade:
    """There is no answer of the form asked for."""
    return Grade(UNPARSABLE, WRONG_REWARD, reason)


def _short(value: str) -> str:
    return value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}…"
