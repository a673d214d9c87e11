"""Which targets cards can make with + - * /, and random formulas that make them. Exact throughout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations
from math import gcd

from evalkit.draw import Draw
from evalkit.errors import TaskError

MIN_CARDS = 2
MAX_CARDS = 6  # seven would take seconds a hand

# Every value below is zero or positive. Nothing is lost: a formula with negative parts can be rewritten without them,
# since |a + b| and |a - b| are always x + y and x - y for the absolute values x and y in some order.
Hand = tuple[int, ...]  # in ascending order
Value = tuple[int, int]  # numerator and denominator in lowest terms
# An operator with two hands and what each should come to: None where anything will do.
Step = tuple[str, Hand, Value | None, Hand, Value | None]

_TABLED = 3  # cards up to which all values of a hand are kept: 120 for three cards, but 2,000 for four

_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2}
_NUMBER = 3


def solvable(values: Sequence[int], target: int) -> bool:
    """Whether some formula uses each value once and comes to the target.

    Raises TaskError unless there are `MIN_CARDS` to `MAX_CARDS` values, all positive, and the target is not negative.
    """
    return _reaches(_hand(values, target), (target, 1))


def solution(values: Sequence[int], target: int, draw: Draw) -> str:
    """A random formula that uses each value once and comes to the target, such as `(7-5)*10+4`.

    Parentheses stand only where they are needed. No intermediate result is negative; otherwise, each way to part the
    cards in two, with an operator and the values of the two halves, is equally likely at every level.
    Raises TaskError where there is no solution, and like `solvable`.
    """
    hand = _hand(values, target)
    if not _reaches(hand, (target, 1)):
        raise TaskError(f"no formula of {', '.join(map(str, values))} comes to {target}; ask `solvable` first")
    return _formula(hand, (target, 1), draw)[0]


def _hand(values: Sequence[int], target: int) -> Hand:
    if not MIN_CARDS <= len(values) <= MAX_CARDS:
        raise TaskError(f"found {len(values)} cards; expected {MIN_CARDS} to {MAX_CARDS}")
    if min(values) < 1 or target < 0:
        raise TaskError(
            f"found the values {', '.join(map(str, values))} and the target {target}; values are positive, "
            "and the target is not negative"
        )
    return tuple(sorted(values))


@lru_cache(maxsize=1 << 14)
def _splits(hand: Hand) -> tuple[tuple[Hand, Hand], ...]:
    """The ways to part a hand in two, the smaller half first; cards of one value are interchangeable."""
    found: dict[tuple[Hand, Hand], None] = {}  # a set would have no order to rely on
    for size in range(1, len(hand) // 2 + 1):
        for chosen in combinations(range(len(hand)), size):
            left = tuple(hand[i] for i in chosen)
            right = tuple(hand[i] for i in range(len(hand)) if i not in chosen)
            found[(left, right) if (right, left) not in found else (right, left)] = None
    return tuple(found)


@lru_cache(maxsize=1 << 10)
def _table(hand: Hand) -> dict[Value, None]:
    """All that a small hand can come to, in an order that depends on nothing else."""
    if len(hand) == 1:
        return {(hand[0], 1): None}
    return {
        value: None
        for left, right in _splits(hand)
        for n, d in _table(left)
        for m, e in _table(right)
        for value in _results(n, d, m, e)
    }


def _results(n: int, d: int, m: int, e: int) -> Iterator[Value]:
    """n/d and m/e, summed, subtracted, multiplied and divided both ways."""
    yield _lowest(n * e + m * d, d * e)
    yield _lowest(abs(n * e - m * d), d * e)
    yield _lowest(n * m, d * e)
    if m:
        yield _lowest(n * e, d * m)
    if n:
        yield _lowest(d * m, n * e)


def _lowest(n: int, d: int) -> Value:
    divisor = gcd(n, d)
    return n // divisor, d // divisor


def _reaches(hand: Hand, target: Value | None) -> bool:
    if target is None:
        return True
    return target in _table(hand) if len(hand) <= _TABLED else _searched(hand, target)


@lru_cache(maxsize=1 << 15)
def _searched(hand: Hand, target: Value) -> bool:
    return any(_possible(step) for step in _steps(hand, target))


def _possible(step: Step) -> bool:
    """Whether both halves of a step can come to what they should; at least one half is known to."""
    _, first, a, second, b = step
    return _reaches(first, a) and _reaches(second, b)


def _steps(hand: Hand, target: Value) -> Iterator[Step]:
    """The last operations that would give the target, if the larger half comes to what is then required of it."""
    for left, right in _splits(hand):
        for a in _table(left):  # at most half of six cards
            yield from _last(left, a, right, target)


def _last(left: Hand, a: Value, right: Hand, target: Value) -> Iterator[Step]:
    n, d = a
    t, u = target
    difference = t * d - n * u
    if difference >= 0:
        yield "+", left, a, right, _lowest(difference, u * d)
    if difference <= 0:
        yield "-", left, a, right, _lowest(-difference, u * d)
    yield "-", right, _lowest(t * d + n * u, u * d), left, a
    if n:
        yield "*", left, a, right, _lowest(t * d, u * n)
        yield "/", right, _lowest(t * n, u * d), left, a
        if t:
            yield "/", left, a, right, _lowest(n * u, d * t)
    elif not t:
        yield "*", left, a, right, None
        yield "/", left, a, right, None


def _formula(hand: Hand, target: Value | None, draw: Draw) -> tuple[str, int]:
    """A random formula, and how tightly its last operation binds."""
    if len(hand) == 1:
        return str(hand[0]), _NUMBER
    operator, first, a, second, b = _any_step(hand, draw) if target is None else _step(hand, target, draw)
    left, right = _formula(first, a, draw), _formula(second, b, draw)
    if operator in "+*" and draw.below(2):
        left, right = right, left
    binding = _BINDING[operator]
    text = operator.join(
        (
            _enclosed(left, left[1] < binding),
            _enclosed(right, right[1] < binding or (right[1] == binding and operator in "-/")),
        )
    )
    return text, binding


def _enclosed(part: tuple[str, int], needed: bool) -> str:
    return f"({part[0]})" if needed else part[0]


def _step(hand: Hand, target: Value, draw: Draw) -> Step:
    """A last operation, all possible ones equally likely; drawn before they are tested, for tests take time."""
    steps = list(_steps(hand, target))
    while steps:
        i = draw.below(len(steps))
        steps[i], steps[-1] = steps[-1], steps[i]
        step = steps.pop()
        if _possible(step):
            return step
    raise AssertionError("the hand was known to reach the target")


def _any_step(hand: Hand, draw: Draw) -> Step:
    """Any operation whose result is not zero, since it may be divided by."""
    left, right = draw.choice(_splits(hand))
    return draw.choice("+*"), left, None, right, None
