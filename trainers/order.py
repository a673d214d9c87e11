"""In which order problems are played."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.draw import Draw
from evalkit.task import Example


class Order:
    """All problems in a random order, then all of them in another one, and so on; the seed says which."""

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        self._examples, self._seed = examples, seed

    def take(self, start: int, count: int) -> list[Example]:
        """So many from a place in the order on; places count from 0."""
        n = len(self._examples)
        rounds = range(start // n, (start + count - 1) // n + 1)
        drawn = [example for r in rounds for example in Draw("order", self._seed, r).shuffled(self._examples)]
        return drawn[start % n : start % n + count]
