"""Steps from cards to a target, against a plain search over everything."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.draw import Draw
from evalkit.errors import TaskError
from evalkit.points import solvable
from evalkit.step_solver import HIGHEST, Step, reaches, steps, targets

cards = st.lists(st.integers(1, 13), min_size=1, max_size=4)


def everything(values: tuple[int, ...]) -> set[int]:
    """All that the values come to without a fraction, a negative number or one above `HIGHEST` on the way."""
    if len(values) == 1:
        return set(values)
    found = set()
    for a, b, *rest in permutations(values):
        results = [a + b, a - b, a * b, *([a // b] if b and a % b == 0 else [])]
        for result in results:
            if 0 <= result <= HIGHEST:
                found |= everything((result, *rest))
    return found


@given(cards)
def test_targets_are_all_there_are(values: list[int]) -> None:
    """Those of a search that leaves nothing out; each can be made by formulas too."""
    found = targets(values)
    assert found == sorted(everything(tuple(values)))
    assert all(reaches(values, target) == (target in found) for target in range(HIGHEST + 2))
    if len(values) > 1:
        assert all(solvable(values, target) for target in found[:5])


@given(cards, st.integers(0, 2**30), st.randoms(use_true_random=False))
def test_steps_play_to_the_target(values: list[int], seed: int, random: st.DataObject) -> None:
    """Each takes two numbers that are left, says a true result, and leaves what it says; the last is the target."""
    target = random.choice(targets(values))  # type: ignore[attr-defined]
    pool = sorted(values)
    for step in steps(values, target, Draw(seed)):
        for number in (step.left, step.right):
            pool.remove(number)
        assert (
            step.result
            == {
                "+": step.left + step.right,
                "-": step.left - step.right,
                "*": step.left * step.right,
                "/": step.left / step.right if step.right else None,
            }[step.operator]
        )
        assert 0 <= step.result <= HIGHEST
        pool = sorted([*pool, step.result])
        assert step.rest == tuple(pool)
    assert pool == [target]


def test_every_first_step_is_drawn_alike() -> None:
    """Of 2, 3 and 4 to 24 there are three, in six orders; a thousand draws give each about a sixth."""
    drawn = [steps([4, 3, 2], 24, Draw(seed))[0] for seed in range(1000)]
    counts = {step: drawn.count(step) for step in drawn}
    assert {(step.left, step.operator, step.right) for step in counts} == {
        (a, "*", b) for a, b in permutations((2, 3, 4), 2)
    }
    assert all(110 < count < 230 for count in counts.values())


def test_the_same_draw_gives_the_same_steps() -> None:
    """Pinned, for references must not change without a new version of the task."""
    assert steps([8, 3, 1, 6], 24, Draw("pinned")) == [
        Step(1, "*", 6, 6, (3, 6, 8)),
        Step(6, "-", 3, 3, (3, 8)),
        Step(3, "*", 8, 24, (24,)),
    ]


def test_what_is_not_reached() -> None:
    """Hands that need fractions are told, and so is a target that nothing comes to."""
    assert solvable([8, 3, 8, 3], 24)
    assert not reaches([8, 3, 8, 3], 24)
    with pytest.raises(TaskError, match="no steps from 8, 3, 8, 3 come to 24; ask `reaches` first"):
        steps([8, 3, 8, 3], 24, Draw(0))
