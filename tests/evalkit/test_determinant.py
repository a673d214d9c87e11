"""The determinant task."""

from __future__ import annotations

import json
from itertools import permutations
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.matrices import Matrix
from evalkit.task import CORRECT, PARTS, UNPARSABLE
from evalkit.tasks.determinant import Determinant, determinant

TASK = Determinant()
DATA = {"matrix": [[1, 2], [3, 4]], "determinant": -2}

squares = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(-(10**9), 10**9), min_size=n, max_size=n), min_size=n, max_size=n)
)


def leibniz(matrix: Matrix) -> int:
    """The determinant as the signed sum over all permutations."""
    total = 0
    for order in permutations(range(len(matrix))):
        inversions = sum(order[i] > order[j] for j in range(len(order)) for i in range(j))
        total += (-1) ** inversions * prod(matrix[i][j] for i, j in enumerate(order))
    return total


@given(squares)
def test_determinant_against_permutations(matrix: list[list[int]]) -> None:
    """The expansion is exact, whatever the size of the entries."""
    assert determinant(matrix) == leibniz(matrix)


def test_examples_are_pinned() -> None:
    """The same seed gives the same matrices on every platform and in every version of Python."""
    first = [[example.data["matrix"] for example in TASK.examples(split, 3)] for split in TASK.splits]
    assert first == [
        [[[-8, -7], [-9, 1]], [[-6, -5], [-6, 3]], [[-1, 3], [-9, 4]]],
        [
            [[4, 4, -9], [-7, -6, -7], [-8, -6, 3]],
            [[-6, 7, -5], [3, 5, -4], [-9, 9, 6]],
            [[-7, -4, -5], [-5, 4, 4], [-5, 9, 2]],
        ],
    ]


@pytest.mark.parametrize(("split", "n"), [("id", 2), ("ood", 3)])
def test_matrices_are_as_the_split_says(split: str, n: int) -> None:
    """Size, entries of one digit, and a determinant that is right and not zero."""
    for example in TASK.examples(split, 150):
        data = example.data
        assert json.loads(json.dumps(data)) == data
        assert np.shape(data["matrix"]) == (n, n)
        assert np.abs(data["matrix"]).max() <= 9
        assert data["determinant"] == round(np.linalg.det(np.array(data["matrix"]))) != 0
        assert TASK.grade(data, TASK.reference(data)).correct


def test_parts_never_share_matrices() -> None:
    """No matrix of one part is in another, in any order of rows and columns or transposed."""
    keys = {part: {e.key for s in TASK.splits for e in TASK.examples(s, 300, part=part)} for part in PARTS}
    assert sum(map(len, keys.values())) == len(set.union(*keys.values()))


def test_question() -> None:
    """The matrix row by row, and the form of the answer; the form itself is no answer."""
    question = TASK.question(DATA)
    assert question == (
        "What is the determinant of this matrix?\n[1, 2]\n[3, 4]\n"
        'End your answer with a JSON object of the form {"determinant": n}, where n is the determinant.'
    )
    assert TASK.grade(DATA, question).kind == UNPARSABLE


@pytest.mark.parametrize(
    ("answer", "kind", "reward"),
    [
        ('{"determinant": -2}', CORRECT, 5),
        ('1*4 - 2*3 = -2, so {"determinant": -2}.', CORRECT, 5),
        ('{"determinant": 2}', "wrong value", -1),
        ('{"determinant": 0}', "wrong value", -1),
        ('{"determinant": 162}', "wrong value", -1),
        ('{"determinant": 163}', "illegal", -3),
        ('{"determinant": -163}', "illegal", -3),
        ('{"determinant": -2.0}', "illegal", -3),
        ('{"determinant": "-2"}', "illegal", -3),
        ('{"determinant": 1' + "0" * 4000 + "}", "illegal", -3),
        ('{"determinant": 1' + "0" * 5000 + "}", UNPARSABLE, -3),
        ('{"determinant": −2}', UNPARSABLE, -3),
        ('{"determinant": 1*4-2*3}', UNPARSABLE, -3),
        ("-2", UNPARSABLE, -3),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_grade(answer: str, kind: str, reward: float) -> None:
    """Only an integer that such a matrix can have has a value; the rest is illegal or unparsable."""
    grade = TASK.grade(DATA, answer)
    assert (grade.kind, grade.reward) == (kind, reward)
    assert len(grade.reason) < 150
    assert kind == CORRECT or kind in TASK.kinds
