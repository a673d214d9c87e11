"""The matrix rank task."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.draw import Draw
from evalkit.matrices import Matrix, canonical
from evalkit.task import CORRECT, PARTS, UNPARSABLE
from evalkit.tasks.determinant import determinant
from evalkit.tasks.matrix_rank import MatrixRank, rank

TASK = MatrixRank()
DATA = {"matrix": [[1, 2, 3, 4, 5], [2, 4, 6, 8, 10], [0, 1, 0, -1, 0], [0, 0, 0, 0, 0]], "rank": 2}

shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))
matrices = shapes.flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(-3, 3), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


def largest_minor(matrix: Matrix) -> int:
    """The rank by its other definition: the size of the largest square part whose determinant is not zero."""
    for size in range(min(len(matrix), len(matrix[0])), 0, -1):
        for rows in combinations(matrix, size):
            for columns in combinations(range(len(matrix[0])), size):
                if determinant([[row[j] for j in columns] for row in rows]):
                    return size
    return 0


@given(matrices)
def test_rank_against_minors(matrix: list[list[int]]) -> None:
    """Elimination and minors agree, also on the transposed matrix."""
    assert rank(matrix) == largest_minor(matrix) == rank(list(zip(*matrix, strict=True)))


def test_rank_is_exact() -> None:
    """A matrix that differs from one of rank 1 by a part in 10^18 has rank 2."""
    n = 10**9
    assert rank([[n, n + 1], [n - 1, n]]) == 2
    assert rank([[n, n + 1], [n * n, n * n + n]]) == 1


@given(matrices, st.randoms(use_true_random=False))
def test_canonical_form(matrix: list[list[int]], random: object) -> None:
    """Rows, columns and sides may change places without another key; another entry is another key."""
    rows = Draw(random.random()).shuffled(matrix)  # type: ignore[attr-defined]
    order = Draw(random.random()).shuffled(range(len(matrix[0])))  # type: ignore[attr-defined]
    moved = [[row[j] for j in order] for row in rows]
    assert canonical(moved) == canonical(matrix) == canonical(list(zip(*moved, strict=True)))
    assert canonical([[moved[0][0] + 9, *moved[0][1:]], *moved[1:]]) != canonical(matrix)


def test_examples_are_pinned() -> None:
    """The same seed gives the same matrices on every platform and in every version of Python."""
    first = [[example.data["matrix"] for example in TASK.examples(split, 3)] for split in TASK.splits]
    assert first == [
        [
            [[0] * 5] * 4,
            [[0, 6, 7, 8, -5], [-24, 1, -21, 2, -28], [13, -11, -17, -23, 27], [16, -8, 23, 0, 13]],
            [[3, 1, 4, -4, -1], [12, 4, 16, -16, -4], [9, 3, 12, -12, -3], [-12, -4, -16, 16, 4]],
        ],
        [
            [[0] * 4] * 5,
            [[-18, 6, -17, -10], [29, -9, 38, 43], [9, 1, 18, 32], [-22, 4, -28, -33], [29, 7, 26, 27]],
            [[-20, 16, -12, -4], [35, -24, 23, 3], [-5, 0, -5, 3], [-20, 14, -13, -2], [0, -6, -3, 6]],
        ],
    ]


@pytest.mark.parametrize(("split", "shape", "bound"), [("id", (4, 5), 4), ("ood", (5, 4), 5)])
def test_matrices_are_as_the_split_says(split: str, shape: tuple[int, int], bound: int) -> None:
    """Shape, size of the entries, rank, and about as many matrices of each rank but the lowest."""
    ranks: Counter[int] = Counter()
    largest = 0
    for example in TASK.examples(split, 150):
        data = example.data
        assert json.loads(json.dumps(data)) == data
        assert np.shape(data["matrix"]) == shape
        assert data["rank"] == np.linalg.matrix_rank(np.array(data["matrix"]))
        largest = max(largest, int(np.abs(data["matrix"]).max()))
        ranks[data["rank"]] += 1
        assert TASK.grade(data, TASK.reference(data)).correct
    assert bound**2 < largest <= 4 * bound**2
    assert ranks[0] <= 1
    assert all(ranks[n] > 15 for n in range(1, 5))


def test_parts_never_share_matrices() -> None:
    """No matrix of one part is in another, in any order of rows and columns or transposed."""
    keys = {part: {e.key for s in TASK.splits for e in TASK.examples(s, 100, part=part)} for part in PARTS}
    assert sum(map(len, keys.values())) == len(set.union(*keys.values()))


def test_question() -> None:
    """The matrix row by row, and the form of the answer; the form itself is no answer."""
    question = TASK.question(DATA)
    assert question == (
        "What is the rank of this matrix?\n"
        "[1, 2, 3, 4, 5]\n[2, 4, 6, 8, 10]\n[0, 1, 0, -1, 0]\n[0, 0, 0, 0, 0]\n"
        'End your answer with a JSON object of the form {"rank": n}, where n is the rank.'
    )
    assert TASK.grade(DATA, question).kind == UNPARSABLE


@pytest.mark.parametrize(
    ("answer", "kind", "reward"),
    [
        ('{"rank": 2}', CORRECT, 5),
        ('The rows are [1, 2], so {2}.\n```json\n{"rank": 2}\n```', CORRECT, 5),
        ('{"rank": 4}', "wrong value", -1),
        ('{"rank": 0}', "wrong value", -1),
        ('{"rank": 5}', "illegal", -3),
        ('{"rank": -2}', "illegal", -3),
        ('{"rank": "2"}', "illegal", -3),
        ('{"rank": 2.0}', "illegal", -3),
        ('{"rank": true}', "illegal", -3),
        ('{"rank": NaN}', UNPARSABLE, -3),
        ('{"determinant": 2}', UNPARSABLE, -3),
        ("2", UNPARSABLE, -3),
    ],
)
def test_grade(answer: str, kind: str, reward: float) -> None:
    """Only an integer that can be a rank has a value; the rest is illegal or unparsable."""
    grade = TASK.grade(DATA, answer)
    assert (grade.kind, grade.reward) == (kind, reward)
    assert kind == CORRECT or kind in TASK.kinds
