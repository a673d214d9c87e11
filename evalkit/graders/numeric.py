r"""The answer is a number, compared exactly.

Where the number stands: in the last `\boxed{...}`, alone on a line after `####`, or after "answer is" or "answer:",
whichever comes last; without such a mark it is the last number of the answer. Of a calculation (`2 + 3 = 5`) the last
number counts. Signs of currency, percent and units are left out: 50% is 50. Of a long answer only the end counts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from fractions import Fraction

from evalkit.graders.verdict import SEARCHED, right, unparsable, wrong
from evalkit.task import Grade

MAX_CHARACTERS = 1_000  # of one number: far below where Python's integers become slow
MAX_EXPONENT = 1_000

# Only ASCII digits: `\d` takes those of every script, in which a model that was asked in English does not answer.
_RUN = r"(?:[0-9][0-9.,]*|(?<!\.)\.[0-9][0-9.,]*)"
_TEN = r"(?:\\times|\\cdot|[*×⋅x])\s?10\s?(?:\^|\*\*)\s?\{?(?P<power>[-+]?[0-9]+)\}?"
_SIGN = r"(?P<sign>(?<![)\]}])[-+])?"
_MONEY = r"(?:\\?[$€£¥])?"
_NUMBER = re.compile(
    rf"(?<![0-9A-Za-z_^])(?<!\^\{{)(?<!\^[-+])(?<!\^\{{[-+]){_SIGN}{_MONEY}(?:"
    r"\\[dt]?frac\{(?P<above>[-+]?[0-9]+)\}\{(?P<below>[-+]?[0-9]+)\}"
    rf"|(?:(?P<whole>[0-9]+)\s(?=[0-9]+/))?(?P<run>{_RUN})(?:[eE](?P<exponent>[-+]?[0-9]+))?"
    rf"(?:\s?{_TEN})?(?P<divisors>(?:\s?/\s?{_RUN})*)"
    r")"
)
_PLAIN = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?")
# A number that is only a part of what was meant: `2\sqrt{3}`, `2^{10}`, `\frac{\pi}{2}`; degrees are a unit.
_PART_BEFORE = re.compile(r"(?:\\sqrt\{|√|[}\]]\{)\Z")
_PART_AFTER = re.compile(r"\s?(?:\\sqrt|\\pi|√|π|\^(?!\{?\\circ))")
# After a number: what joins it to the next one of a calculation.
_JOINT = re.compile(r"(?:\^\{?[-+]?[0-9]+\}?)?\s{0,3}(?:[-+*×·÷=≈]|\\times|\\cdot|\\div|\\approx)\s{0,3}")
_MARK = re.compile(
    r"(?P<boxed>\\boxed\{)|(?P<line>^\s{0,3}####)|answer(?:\s{1,3}is|\*{0,2}\s{0,3}[:=])", re.IGNORECASE | re.MULTILINE
)
# Between a mark and its number: no words, but perhaps a variable (`x = 5`) or the number's adverb.
_FILLER = re.compile(r"[^0-9A-Za-z.+-]{0,20}(?:(?:about|approximately|exactly|[A-Za-z]\s?=)[^0-9A-Za-z.+-]{0,10})?")
_REST_OF_LINE = re.compile(r"[^0-9A-Za-z\n]*(?:\n|\Z)")
_BRACES = re.compile(r"[{}]")
# What stands for a minus sign or parts thousands without being ASCII.
_ALIKE = str.maketrans({"\u2212": "-", "\u2010": "-", "\u2011": "-", "\ufe63": "-", "\uff0d": "-"})
_THIN = re.compile(r"(?<=[0-9])(?:\\,|\\!|[\u202f\u2009\u00a0])(?=[0-9]{3}(?![0-9]))")


def fault(reference: str) -> str | None:
    """What is wrong with a reference, or None: it has to be a number and nothing else."""
    return None if number(reference) is not None else "is no number, such as `1,000`, `-3.5`, `7/2` or `1e6`"


def number(text: str) -> Fraction | None:
    """The number that the whole text is, with or without currency and percent signs, or None."""
    text = _even(text.strip().removesuffix("%").rstrip())
    found = _NUMBER.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    return _value(found) if found else None


def grade(answer: str, references: Sequence[str]) -> Grade:
    """Right if the answer's number equals a reference's, as fractions: 3.50 is 7/2, and 0.333 is not 1/3.

    A number of doubtful form (`1,00`, `1.2.3`), of more than a thousand characters, or with an exponent beyond a
    thousand is unparsable, as is an answer without a number.
    """
    found = _number_of(_even(answer[-SEARCHED:]))
    if found is None:
        return unparsable("There is no number in the answer where one is expected.")
    value = _value(found)
    if value is None:
        return unparsable("The number in the answer is too long, divides by zero, or is written in a doubtful way.")
    return right(str(value)) if any(value == number(each) for each in references) else wrong(str(value))


def _even(text: str) -> str:
    """The text with one sort of minus sign, and commas between thousands."""
    return _THIN.sub(",", text.translate(_ALIKE).replace("{,}", ","))


def _number_of(text: str) -> re.Match[str] | None:
    """Where the answer's number stands."""
    for mark in reversed(list(_MARK.finditer(text))):
        if mark["boxed"]:
            return _only(text, mark.end(), _closing(text, mark.end()))
        filler = _FILLER.match(text, mark.end())
        assert filler is not None  # it may be empty
        first = _NUMBER.match(text, filler.end())
        if first is not None and (not mark["line"] or _REST_OF_LINE.match(text, first.end())):
            return _end_of_calculation(text, first, len(text))
    every = deque(_NUMBER.finditer(text), maxlen=1)
    return every[0] if every else None


def _closing(text: str, start: int) -> int:
    """The position of the brace that closes one opened before `start`, or the end."""
    depth = 1
    for brace in _BRACES.finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.start()
    return len(text)


def _only(text: str, start: int, end: int) -> re.Match[str] | None:
    """The number between two positions, or where a calculation ends; None if others stand beside it."""
    first = _NUMBER.search(text, start, end)
    last = first and _end_of_calculation(text, first, end)
    return last if last and not _NUMBER.search(text, last.end(), end) else None


def _end_of_calculation(text: str, number: re.Match[str], end: int) -> re.Match[str]:
    """The last of the numbers that operators join to this one."""
    while (joint := _JOINT.match(text, number.end(), end)) and (following := _NUMBER.match(text, joint.end(), end)):
        number = following
    return number


def _value(found: re.Match[str]) -> Fraction | None:
    """The number that was found, or None if it is too long, of doubtful form, or divided by zero."""
    text, start, end = found.string, found.start(), found.end()
    if _PART_BEFORE.search(text[max(0, start - 6) : start]) or _PART_AFTER.match(text, end):
        return None
    if end - start > MAX_CHARACTERS:
        return None
    if found["above"] is not None:
        value = _quotient(Fraction(found["above"]), Fraction(found["below"]))
    else:
        value = _plain(found["run"])
        powers = [int(power) for power in (found["exponent"], found["power"]) if power is not None]
        if value is None or any(abs(power) > MAX_EXPONENT for power in powers):
            return None
        value *= Fraction(10) ** sum(powers)
        divisors = [each.strip() for each in found["divisors"].split("/")[1:]]
        if len(divisors) > 1:  # a date, as a rule
            return None
        if divisors:
            value = _quotient(value, _plain(divisors[0]))
        if found["whole"] is not None and value is not None:
            value += int(found["whole"])
    if value is None:
        return None
    return -value if found["sign"] == "-" else value


def _plain(run: str) -> Fraction | None:
    """The number that digits, points and commas make; those that end a sentence or a clause are left out."""
    run = run.rstrip(".,")
    return Fraction(run.replace(",", "")) if _PLAIN.fullmatch(run) else None


def _quotient(above: Fraction, below: Fraction | None) -> Fraction | None:
    return above / below if below else None
