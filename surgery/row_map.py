"""Which rows of which tensors make up a tensor, as runs of consecutive rows."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Run = tuple[int, int, int, int]  # first row, part, first row there, number of rows

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

    def runs(self, first: int, stop: int) -> Iterator[Run]:
        """The runs that the rows from `first` to before `stop` lie in, cut to these."""
        i = max(bisect_right(self._firsts, first) - 1, 0)
        while first < stop and i < len(self._firsts) and self._firsts[i] < stop:
            end = self._firsts[i + 1] if i + 1 < len(self._firsts) else self.length
            begin, end = max(self._firsts[i], first), min(end, stop)
            yield begin, self._parts[i], self._rows[i] + begin - self._firsts[i], end - begin
            i += 1
