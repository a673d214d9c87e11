"""Rows of several tensors, as runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from surgery.row_map import MEAN, ZERO, RowMap

PLACES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=20)


def written_out(rows: RowMap, first: int, stop: int) -> list[tuple[int, ...]]:
    """Runs as a list of tuples: first row, part, first row there, number of rows."""
    return list(zip(*(each.tolist() for each in rows.runs(first, stop)), strict=True))


@given(PLACES, st.integers(0, 20), st.integers(0, 20))
def test_runs_are_the_rows_asked_for(places: list[tuple[int, int]], first: int, count: int) -> None:
    """Written out, the runs of any part of the rows are those rows, in order, each once."""
    stop = min(first + count, len(places))
    first = min(first, stop)
    runs = written_out(RowMap.of(places), first, stop)
    rows = [(at + i, part, row + i) for at, part, row, length in runs for i in range(length)]
    assert rows == [(i, *places[i]) for i in range(first, stop)]
    assert all(length > 0 for *_, length in runs)


@given(PLACES, PLACES)
def test_maps_are_equal_when_their_rows_are(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    """So are digests and hashes; the map of the first rows in order is the identity."""
    a, b = RowMap.of(one), RowMap.of(other)
    assert (a == b) == (a.digest == b.digest) == (one == other)
    assert hash(RowMap.of(list(one))) == hash(a)
    assert a.identity == (bool(one) and one == [(0, i) for i in range(len(one))])


@given(st.lists(st.tuples(st.integers(ZERO, 1), st.integers(0, 6)), max_size=12), st.integers(0, 4))
def test_made_rows_are_runs_of_their_kind(places: list[tuple[int, int]], means: int) -> None:
    """Of zeros, wherever they are, and of means, at the end; no part gives them, and their numbers do not matter."""
    found = RowMap.of([*places, *[(MEAN, 0)] * means])
    kinds = [part for _, part, _, length in written_out(found, 0, found.length) for _ in range(length)]
    assert kinds == [part for part, _ in places] + [MEAN] * means
    assert found.means == means
    assert sum(found.counts) == sum(part != ZERO for part, _ in places)
    assert found == RowMap.of([*((part, row if part >= 0 else 9) for part, row in places), *[(MEAN, 3)] * means])


def test_consecutive_rows_are_one_run() -> None:
    """Of one part; what each part gives, and the rows that it must have for that."""
    found = RowMap.of([(0, 3), (0, 4), (2, 5), (2, 6), (2, 8), (0, 9)])
    assert written_out(found, 0, 6) == [(0, 0, 3, 2), (2, 2, 5, 2), (4, 2, 8, 1), (5, 0, 9, 1)]
    assert written_out(found, 1, 4) == [(1, 0, 4, 1), (2, 2, 5, 2)]
    assert (found.length, found.counts, found.reach) == (6, (3, 0, 3), (10, 0, 9))
