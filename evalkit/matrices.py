"""Small integer matrices: as questions show them, and told apart below their surface."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

Matrix = Sequence[Sequence[int]]


def rows_as_text(matrix: Matrix) -> str:
    """The matrix with a row on each line: `[1, -2, 3]`."""
    return "\n".join(f"[{', '.join(map(str, row))}]" for row in matrix)


def canonical(matrix: Matrix) -> str:
    """One text for all matrices that differ by the order of rows, the order of columns, or transposition.

    The least of them, columns sorted, over all orders of the shorter side: at most 24 for four rows.
    """
    turned: Matrix = tuple(zip(*matrix, strict=True))
    sides = [side for side in (matrix, turned) if len(side) == min(len(matrix), len(turned))]
    least = min(tuple(sorted(zip(*rows, strict=True))) for side in sides for rows in permutations(side))
    return ";".join(",".join(map(str, column)) for column in least)
