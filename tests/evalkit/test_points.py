"""The solver of GeneralPoints, against plain search."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, combinations_with_replacement, product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evalkit.draw import Draw
from evalkit.errors import TaskError
from evalkit.formula import parse
from evalkit.points import solution, solvable


def reachable(values: Sequence[Fraction]) -> set[Fraction]:
    """Everything that any pairs, combined in any order, come to: signs, negative parts and all."""
    if len(values) == 1:
        return {values[0]}
    found = set()
    for i, j in combinations(range(len(values)), 2):
        a, b = values[i], values[j]
        rest = [values[k] for k in range(len(values)) if k not in (i, j)]
        results = {a + b, a - b, b - a, a * b} | ({a / b} if b else set()) | ({b / a} if a else set())
        for result in results:
            found |= reachable([*rest, result])
    return found


@pytest.mark.parametrize(("largest", "hands", "expected"), [(13, 1820, 1362), (10, 715, 566)])
def test_known_counts(largest: int, hands: int, expected: int) -> None:
    """Of the multisets of four values from 1, as many make 24 as the literature says."""
    found = [solvable(hand, 24) for hand in combinations_with_replacement(range(1, largest + 1), 4)]
    assert (len(found), sum(found)) == (hands, expected)


@pytest.mark.parametrize("hand", list(combinations_with_replacement((1, 2, 3, 5, 8, 12), 3)), ids=str)
def test_three_cards_against_search(hand: tuple[int, ...]) -> None:
    """Three cards make exactly the targets that plain search finds, signs before any card included."""
    found = set()
    for signs in product((1, -1), repeat=3):
        found |= reachable([Fraction(sign * value) for sign, value in zip(signs, hand, strict=True)])
    for target in range(200):
        assert solvable(hand, target) == (target in found)


@pytest.mark.parametrize("seed", range(12))
def test_four_cards_against_search(seed: int) -> None:
    """Four random cards make exactly the targets that plain search finds."""
    draw = Draw("four cards", seed)
    hand = [draw.between(1, 13) for _ in range(4)]
    found = reachable([Fraction(value) for value in hand])
    assert [target for target in range(400) if solvable(hand, target)] == sorted(
        value.numerator for value in found if value.denominator == 1 and 0 <= value < 400
    )


def test_five_cards_against_search() -> None:
    """Five cards, with doubles: exactly the targets that plain search finds."""
    hand = [1, 1, 4, 4, 9]
    found = reachable([Fraction(value) for value in hand])
    assert [target for target in range(300) if solvable(hand, target)] == sorted(
        value.numerator for value in found if value.denominator == 1 and 0 <= value < 300
    )


@given(st.lists(st.integers(1, 13), min_size=2, max_size=5), st.integers(0, 60), st.integers(0, 99))
def test_solutions_are_solutions(values: list[int], target: int, seed: int) -> None:
    """A solution uses exactly the values and comes to the target, by a grader that knows nothing of the solver."""
    assume(solvable(values, target))
    formula = parse(solution(values, target, Draw(seed)))
    assert sorted(formula.numbers) == sorted(values)
    assert formula.value() == target


@pytest.mark.parametrize("target", [0, 1, 24, 100, 720])
def test_six_cards(target: int) -> None:
    """Six cards, whose halves are searched and not tabled, are solved as well."""
    for seed in range(5):
        draw = Draw("six cards", seed)
        values = [draw.between(1, 13) for _ in range(6)]
        if solvable(values, target):
            formula = parse(solution(values, target, draw))
            assert (sorted(formula.numbers), formula.value()) == (sorted(values), target)
    assert solvable([1, 2, 3, 4, 5, 6], target)


@pytest.mark.parametrize(
    ("values", "target"),
    [
        ([3, 3, 8, 8], 24),
        ([1, 5, 5, 5], 24),
        ([3, 3, 7, 7], 24),
        ([1, 3, 4, 6], 24),
        ([5, 5, 7, 9, 13], 0),
        ([1, 1], 0),
    ],
)
def test_hard_hands(values: list[int], target: int) -> None:
    """Hands that need fractions, or a zero that swallows the other cards."""
    assert parse(solution(values, target, Draw(0))).value() == target


def test_different_solutions_come_up() -> None:
    """Many draws give many of the solutions, in both orders of sums and products."""
    assert {solution([4, 5, 7, 10], 24, Draw(seed)) for seed in range(100)} == {
        "(7-5)*10+4",
        "10*(7-5)+4",
        "4+(7-5)*10",
        "4+10*(7-5)",
    }
    assert len({solution([2, 4, 6, 12], 24, Draw(seed)) for seed in range(300)}) > 60


def test_solutions_do_not_depend_on_what_was_asked_before() -> None:
    """The same draw gives the same solution, in whatever order the cards lie and whatever is cached."""
    first = solution([9, 3, 12, 7], 24, Draw(5))
    for other in range(1, 200):
        solvable([other, 3, 7, 9], 24)
    assert solution([3, 12, 9, 7], 24, Draw(5)) == first


def test_zero_takes_every_other_card() -> None:
    """Where a half is zero, the other half may be anything, and be multiplied or divided by."""
    found = {solution([5, 5, 7, 9], 0, Draw(seed)) for seed in range(200)}
    assert {"(5-5)*7*9", "(5-5)*(7+9)", "(5-5)/(7+9)"} <= found


@pytest.mark.parametrize("seed", range(40))
def test_parentheses_are_needed(seed: int) -> None:
    """Without any one pair of its parentheses, the formula would mean something else, whatever the numbers."""
    draw = Draw("parentheses", seed)
    values = [draw.between(1, 13) for _ in range(5)]
    if not solvable(values, 24):
        return
    large = iter((10_007, 20_011, 40_009, 80_021, 160_001))
    text = re.sub(r"\d+", lambda _: str(next(large)), solution(values, 24, draw))
    opened: list[int] = []
    for i, character in enumerate(text):
        if character == "(":
            opened.append(i)
        elif character == ")":
            start = opened.pop()
            assert parse(text[:start] + text[start + 1 : i] + text[i + 1 :]).value() != parse(text).value()


@pytest.mark.parametrize(
    ("values", "target", "message"),
    [
        ([24], 24, "found 1 cards; expected 2 to 6"),
        ([], 24, "found 0 cards; expected 2 to 6"),
        ([1] * 7, 24, "found 7 cards; expected 2 to 6"),
        ([0, 24], 24, "values are positive"),
        ([-1, 24], 24, "values are positive"),
        ([1, 2], -1, "the target is not negative"),
    ],
)
def test_refused(values: list[int], target: int, message: str) -> None:
    """Other numbers of cards, and values or targets that the search does not cover, are errors."""
    with pytest.raises(TaskError, match=message):
        solvable(values, target)
    with pytest.raises(TaskError, match=message):
        solution(values, target, Draw(0))


def test_no_solution() -> None:
    """Where there is none, asking for a solution is an error that says so."""
    with pytest.raises(TaskError, match="no formula of 1, 1, 1, 1 comes to 24"):
        solution([1, 1, 1, 1], 24, Draw(0))
