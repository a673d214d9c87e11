"""The determinant of a small integer matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import factorial
from typing import ClassVar

from evalkit.answers import ILLEGAL, WRONG_VALUE, grade_integer
from evalkit.draw import Draw
from evalkit.matrices import Matrix, canonical, rows_as_text
from evalkit.task import UNPARSABLE, Data, Grade, Task

_SIZES = {"id": 2, "ood": 3}
_BOUND = 9  # entries of one digit: 16,000 matrices of two rows that are different below the surface


class Determinant(Task):
    """Tell the determinant of an integer matrix: 2x2, and out of distribution 3x3."""

    name: ClassVar[str] = "determinant"
    version: ClassVar[int] = 1
    max_tokens: ClassVar[int] = 512  # most models must expand on paper
    kinds: ClassVar[tuple[str, ...]] = (UNPARSABLE, ILLEGAL, WRONG_VALUE)

    @property
    def splits(self) -> Mapping[str, str]:
        """The two sizes."""
        return {split: f"{n}x{n}, entries from {-_BOUND} to {_BOUND}" for split, n in _SIZES.items()}

    def draw(self, split: str, draw: Draw) -> Data | None:
        """A `matrix` as a list of rows, with its `determinant`; None if that is zero."""
        n = _SIZES[split]
        matrix = [[draw.between(-_BOUND, _BOUND) for _ in range(n)] for _ in range(n)]
        value = determinant(matrix)
        return {"matrix": matrix, "determinant": value} if value else None

    def key(self, data: Data) -> str:
        """The matrix up to the order of its rows and columns and transposition, which change the sign at most."""
        return canonical(data["matrix"])

    def question(self, data: Data) -> str:
        """The matrix, and the form of the answer."""
        return (
            f"What is the determinant of this matrix?\n{rows_as_text(data['matrix'])}\n"
            'End your answer with a JSON object of the form {"determinant": n}, where n is the determinant.'
        )

    def grade(self, data: Data, answer: str) -> Grade:
        """Judge the `determinant` of the last JSON object that has one."""
        n = len(data["matrix"])
        most = factorial(n) * _BOUND**n  # terms of the expansion, each at its largest
        return grade_integer(answer, "determinant", data["determinant"], range(-most, most + 1))

    def reference(self, data: Data) -> str:
        """The determinant as JSON."""
        return json.dumps({"determinant": data["determinant"]})


def determinant(matrix: Matrix) -> int:
    """The determinant in exact integers, expanded along the first row; meant for two or three rows."""
    if len(matrix) == 1:
        return matrix[0][0]
    minors = ([[*row[:j], *row[j + 1 :]] for row in matrix[1:]] for j in range(len(matrix)))
    return sum(
        (-1) ** j * entry * determinant(minor) for j, (entry, minor) in enumerate(zip(matrix[0], minors, strict=True))
    )
