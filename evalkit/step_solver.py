"""Which whole numbers cards can make step by step with + - * /, and random ways to make them.

A step takes two numbers out of a pool and puts their result back; no number is ever a fraction, negative, or above
`HIGHEST`, so that a small vocabulary has them all. `evalkit.points` knows the solutions that need other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from evalkit.draw import Draw
from evalkit.errors import TaskError

HIGHEST = 160

Pool = tuple[int, ...]  # in ascending order


@dataclass(frozen=True, slots=True)
class Step:
    """`left operator right = result`, and the numbers that are left afterwards, the result among them."""

    left: int
    operator: str
    right: int
    result: int
    rest: Pool


def targets(values: Sequence[int]) -> list[int]:
    """What the values come to when each is used once, in ascending order.

    At least one value, all from 0 to `HIGHEST`.
    """
    reached = _reached(tuple(sorted(values)))
    return [target for target in range(HIGHEST + 1) if reached >> target & 1]


def reaches(values: Sequence[int], target: int) -> bool:
    """Whether `target`, which is not negative, is among the `targets`."""
    return bool(_reached(tuple(sorted(values))) >> target & 1)


def steps(values: Sequence[int], target: int, draw: Draw) -> list[Step]:
    """Random steps to the target, one fewer than there are values; at each, all that lead to it are equally likely.

    The two numbers of a sum or product are in random order. Raises TaskError where no steps do.
    """
    pool = tuple(sorted(values))
    if not reaches(pool, target):
        raise TaskError(f"no steps from {', '.join(map(str, values))} come to {target}; ask `reaches` first")
    found = []
    while len(pool) > 1:
        step = draw.choice([step for step in _steps(pool) if _reached(step.rest) >> target & 1])
        if step.operator in "+*" and draw.below(2):
            step = Step(step.right, step.operator, step.left, step.result, step.rest)
        found.append(step)
        pool = step.rest
    return found


@lru_cache(maxsize=1 << 18)  # the pools of all hands of four values from 1 to 13 are 79,000
def _reached(pool: Pool) -> int:
    """Bit t is set where the pool comes to t."""
    if len(pool) == 1:
        return 1 << pool[0]
    found = 0
    for step in _steps(pool):
        found |= _reached(step.rest)
    return found


@lru_cache(maxsize=1 << 18)
def _steps(pool: Pool) -> tuple[Step, ...]:
    """The steps that a pool allows; equal numbers are interchangeable, and a sum or product stands once."""
    found: dict[tuple[int, str, int], Step] = {}  # a set would have no order to rely on
    for i, j in combinations(range(len(pool)), 2):
        others = [number for k, number in enumerate(pool) if k not in (i, j)]
        for left, operator, right, result in _results(pool[j], pool[i]):
            found[left, operator, right] = Step(left, operator, right, result, tuple(sorted([*others, result])))
    return tuple(found.values())


def _results(high: int, low: int) -> Iterator[tuple[int, str, int, int]]:
    """What two numbers, the higher one first, come to."""
    if high + low <= HIGHEST:
        yield high, "+", low, high + low
    yield high, "-", low, high - low
    if high * low <= HIGHEST:
        yield high, "*", low, high * low
    if low and high % low == 0:
        yield high, "/", low, high // low
    if high > low == 0:
        yield low, "/", high, 0
