"""The rank of a small integer matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar

from evalkit.answers import ILLEGAL, WRONG_VALUE, grade_integer
from evalkit.draw import Draw
from evalkit.matrices import Matrix, canonical, rows_as_text
from evalkit.task import UNPARSABLE, Data, Grade, Task

# Rows, columns, and the largest entry of the two factors whose product the matrix is.
_SHAPES = {"id": (4, 5, 4), "ood": (5, 4, 5)}
_MAX_RANK = 4


class MatrixRank(Task):
    """Tell the rank of an integer matrix: 4x5, and out of distribution 5x4 with larger entries."""

    name: ClassVar[str] = "matrix_rank"
    version: ClassVar[int] = 1
    max_tokens: ClassVar[int] = 512  # most models must eliminate on paper
    kinds: ClassVar[tuple[str, ...]] = (UNPARSABLE, ILLEGAL, WRONG_VALUE)

    @property
    def splits(self) -> Mapping[str, str]:
        """The two shapes."""
        return {
            split: f"{rows}x{columns}, product of factors with entries from {-bound} to {bound}"
            for split, (rows, columns, bound) in _SHAPES.items()
        }

    def draw(self, split: str, draw: Draw) -> Data:
        """A `matrix` as a list of rows, with its `rank`: each rank from 0 to 4 is aimed at equally often.

        The zero matrix is drawn often, but is one example.
        """
        rows, columns, bound = _SHAPES[split]
        inner = draw.between(0, _MAX_RANK)
        left = [[draw.between(-bound, bound) for _ in range(inner)] for _ in range(rows)]
        right = [[draw.between(-bound, bound) for _ in range(columns)] for _ in range(inner)]
        matrix = [[sum(row[k] * right[k][j] for k in range(inner)) for j in range(columns)] for row in left]
        return {"matrix": matrix, "rank": rank(matrix)}

    def key(self, data: Data) -> str:
        """The matrix up to the order of its rows and columns and transposition, which leave the rank alone."""
        return canonical(data["matrix"])

    def question(self, data: Data) -> str:
        """The matrix, and the form of the answer."""
        return (
            f"What is the rank of this matrix?\n{rows_as_text(data['matrix'])}\n"
            'End your answer with a JSON object of the form {"rank": n}, where n is the rank.'
        )

    def grade(self, data: Data, answer: str) -> Grade:
        """Judge the `rank` of the last JSON object that has one."""
        matrix = data["matrix"]
        return grade_integer(answer, "rank", data["rank"], range(min(len(matrix), len(matrix[0])) + 1))

    def reference(self, data: Data) -> str:
        """The rank as JSON."""
        return json.dumps({"rank": data["rank"]})


def rank(matrix: Matrix) -> int:
    """The rank, by elimination in exact fractions."""
    rows = [[Fraction(entry) for entry in row] for row in matrix]
    found = 0
    for column in range(len(matrix[0])):
        pivot = next((row for row in rows if row[column]), None)
        if pivot is None:
            continue
        found += 1
        rows.remove(pivot)
        rows = [_without(row, pivot, column) for row in rows]
    return found


def _without(row: list[Fraction], pivot: list[Fraction], column: int) -> list[Fraction]:
    factor = row[column] / pivot[column]
    return [entry - factor * other for entry, other in zip(row, pivot, strict=True)]
