"""Which rows of which tensors make up a tensor, as runs of consecutive rows."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    Runs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # of each: first row, part, first row there, rows

ZERO, MEAN = -1, -2  # in place of a part: rows of zeros, and rows that are the mean of all those that are not MEAN


@dataclass(frozen=True, slots=True)
class RowMap:
    """The rows of a tensor, each a row of one of several parts; made by `of`.

    `counts` says how many rows each part gives, `reach` how many it must have; `means` how many rows at the end are
    MEAN. Two maps are equal when they have one `digest`. Runs are kept, not rows: a vocabulary with a few tokens more
    takes a few integers.
    """

    length: int
    counts: tuple[int, ...]
    reach: tuple[int, ...]
    means: int
    digest: str
    _firsts: array[int] = field(compare=False, repr=False)
    _parts: array[int] = field(compare=False, repr=False)
    _rows: array[int] = field(compare=False, repr=False)

    @classmethod
    def of(cls, places: Sequence[tuple[int, int]]) -> RowMap:
        """The map whose row i is, of the part `places[i][0]`, the row `places[i][1]`.

        Of ZERO and of MEAN rows the number does not matter; MEAN rows are the last.
        """
        firsts, parts, rows = array("q"), array("q"), array("q")
        reach: Counter[int] = Counter()
        before: tuple[int, int] | None = None
        for i, (part, number) in enumerate(places):
            row = number if part >= 0 else i  # one run
            if before is None or (part, row - 1) != before:
                firsts.append(i)
                parts.append(part)
                rows.append(row)
            before = part, row
            reach[part] = max(reach[part], row + 1)
        counts = Counter(part for part, _ in places)
        means = counts[MEAN]
        assert all(part == MEAN for part, _ in places[len(places) - means :]), "MEAN rows are the last"
        known = range(max(counts, default=-1) + 1)
        digest = hashlib.blake2b(digest_size=16)
        for numbers in (array("q", [len(places)]), firsts, parts, rows):
            digest.update(",".join(map(str, numbers)).encode() + b";")
        return cls(
            len(places),
            tuple(counts[part] for part in known),
            tuple(reach[part] for part in known),
            means,
            digest.hexdigest(),
            firsts,
            parts,
            rows,
        )

    @property
    def identity(self) -> bool:
        """Whether its rows are the first ones of its first part, in their order."""
        return self.counts == (self.length,) and list(self._rows) == [0]

    def runs(self, first: int, stop: int) -> Runs:
        """The runs that the rows from `first` to before `stop` lie in, cut to these."""
        import numpy as np  # plans, which only make maps, do without

        start = max(bisect_right(self._firsts, first) - 1, 0)
        within = slice(start, bisect_left(self._firsts, stop) if first < stop else start)
        begins, parts, rows = (np.array(each[within], np.int64) for each in (self._firsts, self._parts, self._rows))
        ends = np.append(begins[1:], min(stop, self._end(within.stop)))[: len(begins)]
        ahead = np.maximum(first - begins, 0)
        return begins + ahead, parts, rows + ahead, ends - begins - ahead

    def _end(self, run: int) -> int:
        """The row at which a run begins, or would begin behind the last."""
        return self._firsts[run] if run < len(self._firsts) else self.length
