"""Random choices that are the same on every platform and under every version of Python."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of choices that depends on its seed alone, which is the text of the given values.

    Everything is made of `random.Random.random`, the only method whose sequence Python promises to keep.
    """

    def __init__(self, *seed: object) -> None:
        self._random = Random("/".join(map(str, seed)))

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1; n is positive and far below 2**53, so that the bias is nil."""
        return int(self._random.random() * n)

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, which are at least one."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order (Fisher and Yates)."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result
