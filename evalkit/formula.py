"""Formulas as models write them: read without trusting them, and evaluated exactly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from surgery.wording import show

# A formula of six cards takes 30 characters with every parenthesis. The bounds leave a model room for odd habits, and
# no formula within them takes more than a fraction of a millisecond.
MAX_LENGTH = 200  # characters left of `=`
MAX_DEPTH = 32  # operators, signs and parentheses that wait for their right-hand side at once
MAX_DIGITS = 9  # of one number; cards have two, and such numbers add and multiply in machine words

_TOKEN = re.compile(r"[0-9]+|[-+*/()]")  # not \d, which takes the digits of every script
_SIGN = "~"  # a minus that stands before its operand, told apart from subtraction
_RANK = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, _SIGN: 3}


class FormulaError(ValueError):
    """A formula is not legal; the message is a clause about it: "it divides by zero"."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A legal formula: the numbers it uses from left to right, and its steps in postfix order."""

    numbers: tuple[int, ...]
    steps: tuple[int | str, ...]

    def value(self) -> Fraction:
        """What the formula comes to. Raises FormulaError for a division by zero."""
        stack: list[Fraction] = []
        for step in self.steps:
            if isinstance(step, int):
                stack.append(Fraction(step))
            elif step == _SIGN:
                stack.append(-stack.pop())
            else:
                right = stack.pop()
                stack.append(_apply(step, stack.pop(), right))
        return stack[0]


def parse(text: str) -> Formula:
    """Read integers, `+ - * /`, signs, parentheses and spaces; only what stands left of the first `=` counts.

    Nothing is computed yet, so that the numbers can be checked first. Raises FormulaError for anything else, and
    beyond `MAX_LENGTH`, `MAX_DEPTH` or `MAX_DIGITS`. Dijkstra's shunting-yard: no recursion.
    """
    steps: list[int | str] = []
    waiting: list[str] = []
    last = ""  # the token before; empty at the start
    for token in _tokens(text):
        after_operand = last == ")" or last.isdigit()
        if token.isdigit() or token == "(":
            if after_operand:
                raise FormulaError(f"an operator is missing between `{last}` and `{token}`")
            if token == "(":
                waiting.append(token)
            else:
                steps.append(_number(token))
        elif after_operand and token == ")":
            _finish(steps, waiting, 1)
            if not waiting:
                raise FormulaError("a `)` has no `(`")
            waiting.pop()
        elif after_operand:
            _finish(steps, waiting, _RANK[token])
            waiting.append(token)
        elif token == "-":
            waiting.append(_SIGN)
        elif token != "+":
            raise FormulaError(f"it has `{token}` where a number should stand")
        if len(waiting) > MAX_DEPTH:
            raise FormulaError(f"it is nested more than {MAX_DEPTH} deep")
        last = token
    if not last:
        raise FormulaError("it is empty")
    if last != ")" and not last.isdigit():
        raise FormulaError(f"it breaks off after `{last}`")
    _finish(steps, waiting, 1)
    if waiting:
        raise FormulaError("a `(` is never closed")
    return Formula(tuple(step for step in steps if isinstance(step, int)), tuple(steps))


def _tokens(text: str) -> Iterator[str]:
    left = text[: MAX_LENGTH + 1].partition("=")[0]
    if len(left) > MAX_LENGTH:
        raise FormulaError(f"it is longer than {MAX_LENGTH} characters")
    at = 0
    while at < len(left):
        if left[at] == " ":
            at += 1
            continue
        match = _TOKEN.match(left, at)
        if match is None:
            raise FormulaError(f"{show(left[at])} is none of digits, + - * / and parentheses")
        yield match[0]
        at = match.end()


def _number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise FormulaError(f"a number has more than {MAX_DIGITS} digits")
    if digits[0] == "0" and len(digits) > 1:
        raise FormulaError(f"the number `{digits}` begins with 0")
    return int(digits)


def _finish(steps: list[int | str], waiting: list[str], rank: int) -> None:
    """Move the operators that bind at least as tightly as `rank`, back to the last open parenthesis."""
    while waiting and _RANK[waiting[-1]] >= rank:
        steps.append(waiting.pop())


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0:
        raise FormulaError("it divides by zero")
    return left / right
