"""The 24 game step by step: hands, the words, and grades of answers that play by the rules or not."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evalkit.answers import ILLEGAL, WRONG_NUMBERS, WRONG_VALUE
from evalkit.errors import TaskError
from evalkit.points import solvable
from evalkit.step_solver import HIGHEST
from evalkit.task import CORRECT, PARTS, UNPARSABLE, part_of
from evalkit.tasks.general_points import FACES, GeneralPoints
from evalkit.tasks.general_points_steps import PRETRAINING, GeneralPointsSteps

TASK = GeneralPointsSteps()
DATA = {"cards": ["9", "8", "6", "2"], "values": [9, 8, 6, 2], "rule": {"J": 10, "Q": 10, "K": 10}, "target": 24}
RIGHT = "9 8 6 2 | 9 * 8 = 72 | 72 6 2 | 72 / 6 = 12 | 12 2 | 12 * 2 = 24"

# The first problems of each split for seed 0: they must never change without a new version of the task.
GOLDEN = {
    "id": ["J=10 Q=10 K=10 24 10 7 9 4", "J=10 Q=10 K=10 24 3 9 4 3", "J=10 Q=10 K=10 24 8 6 5 6"],
    "ood": ["J=11 Q=12 K=13 24 6 K 8 10", "J=11 Q=12 K=13 24 J 9 4 A", "J=11 Q=12 K=13 24 Q 2 Q 8"],
    "pretraining": ["J=11 Q=12 K=13 75 5 8 5 J", "J=11 Q=12 K=13 4 7 3 9 8", "J=10 Q=10 K=10 62 10 7 8"],
}


def test_problems_are_pinned() -> None:
    """The same seed gives the same questions on every platform and in every version of Python."""
    assert {split: [TASK.question(e.data) for e in TASK.examples(split, 3)] for split in TASK.splits} == GOLDEN


def test_references_are_pinned() -> None:
    """So does the same hand give the same reference answer."""
    assert [TASK.reference(example.data) for example in TASK.examples("ood", 2)] == [
        "6 13 8 10 | 10 + 6 = 16 | 16 13 8 | 16 - 13 = 3 | 3 8 | 8 * 3 = 24",
        "11 9 4 1 | 11 * 1 = 11 | 11 9 4 | 9 + 11 = 20 | 20 4 | 20 + 4 = 24",
    ]


@pytest.mark.parametrize("split", ["id", "ood"])
def test_hands_of_values_are_equally_likely(split: str) -> None:
    """A test of many examples meets as many problems as independent draws of all would: few come up often."""
    examples = TASK.examples(split, 400)
    counts = Counter(example.key for example in examples)
    assert len(counts) > 150
    assert max(counts.values()) <= 10


@pytest.mark.parametrize("split", ["id", "ood"])
def test_hands_are_general_points(split: str) -> None:
    """The hands that `general_points` might deal, of the same rule, and each has a solution without fractions."""
    rules = {"id": {"J": 10, "Q": 10, "K": 10}, "ood": {"J": 11, "Q": 12, "K": 13}}
    for example in TASK.examples(split, 150):
        data = example.data
        assert json.loads(json.dumps(data)) == data
        assert len(data["cards"]) == 4
        assert data["target"] == 24
        assert data["rule"] == rules[split]
        assert split == "id" or set(data["cards"]) & set(FACES)
        assert solvable(data["values"], 24)
        assert example.key == GeneralPoints().key(data)


def test_pretraining_has_all_kinds() -> None:
    """Three cards in a sixth to a quarter, three kinds of rules in thirds, the target seldom, others from 1 to 100."""
    found = [example.data for example in TASK.examples(PRETRAINING, 2000, part="train")]
    cards = Counter(len(data["cards"]) for data in found)
    assert set(cards) == {3, 4}
    assert 0.1 < cards[3] / 2000 < 0.3
    rules = Counter(tuple(data["rule"].values()) for data in found)
    assert all(0.28 < rules[rule] / 2000 < 0.4 for rule in ((10, 10, 10), (11, 12, 13)))
    assert len(rules) > 400
    targets = Counter(data["target"] for data in found)
    assert 0.015 < targets[24] / 2000 < 0.06
    assert min(targets) >= 1
    assert max(targets) <= 100


def test_values_belong_to_one_part() -> None:
    """What one part has of any split, under any rule or target, no other part has."""
    keys = {part: {e.key for split in TASK.splits for e in TASK.examples(split, 200, part=part)} for part in PARTS}
    assert all(part_of(TASK.name, key) == part for part in PARTS for key in keys[part])


@pytest.mark.parametrize("split", ["id", "ood", PRETRAINING])
def test_references_are_right_and_in_words(split: str) -> None:
    """A reference is correct, worth 1, ends before the most tokens, and has no other words than the task says."""
    words = set(TASK.words)
    assert len(words) == len(TASK.words)
    for example in TASK.examples(split, 150):
        answer = TASK.reference(example.data)
        grade = TASK.grade(example.data, answer)
        assert (grade.kind, grade.reward, grade.value) == (CORRECT, 1.0, str(example.data["target"]))
        text = [*TASK.question(example.data).split(), *answer.split()]
        assert set(text) <= words
        assert len(answer.split()) < TASK.max_tokens


def test_scored_splits() -> None:
    """What is made to learn from is not scored unless it is named."""
    assert TASK.scored == ("id", "ood")


GRADES = {
    RIGHT: CORRECT,
    "  9 8 6 2|9 * 8 = 72|  72 6 2 |\n72 / 6 = 12 | 12 2 | 12 * 2 = 24 ": CORRECT,
    "2 6 8 9 | 9 * 8 = 72 | 2 6 72 | 72 / 6 = 12 | 2 12 | 2 * 12 = 24": CORRECT,  # in any order
    "": UNPARSABLE,
    "24": WRONG_NUMBERS,
    "9 8 6 2": UNPARSABLE,
    "9 8 6 2 |": UNPARSABLE,
    RIGHT + " |": UNPARSABLE,
    RIGHT + " | 24": UNPARSABLE,
    RIGHT + " <end>": UNPARSABLE,
    RIGHT.removesuffix(" | 12 * 2 = 24"): UNPARSABLE,
    "| " + RIGHT: UNPARSABLE,
    RIGHT.replace("72 / 6 = 12", "72 / 6"): UNPARSABLE,
    RIGHT.replace("72 / 6 = 12", "72 / 6 = 12 = 12"): UNPARSABLE,
    RIGHT.replace("72 / 6 = 12", "72 // 6 = 12"): UNPARSABLE,
    RIGHT.replace("9 * 8 = 72", "9 * 8 = 7_2"): UNPARSABLE,
    RIGHT.replace("9 * 8 = 72", "9 * 8 = ٧٢"): UNPARSABLE,  # decimal digits of another script
    RIGHT.replace("9 * 8 = 72", "9 * 8 = 72.0"): UNPARSABLE,
    RIGHT.replace("9 * 8 = 72", "9 * 8 = +72"): UNPARSABLE,
    RIGHT.replace("9 8 6 2", "9 8 6 3", 1): WRONG_NUMBERS,
    RIGHT.replace("9 8 6 2", "9 8 6 2 2", 1): WRONG_NUMBERS,
    RIGHT.replace("9 8 6 2", "9 8 6", 1): WRONG_NUMBERS,
    RIGHT.replace("9 * 8 = 72", "9 * 9 = 81"): WRONG_NUMBERS,  # there is one 9
    RIGHT.replace("9 * 8 = 72", "12 * 2 = 24"): WRONG_NUMBERS,
    RIGHT.replace("| 72 6 2", "| 72 6 4"): WRONG_NUMBERS,
    RIGHT.replace("| 72 6 2", "| 24 6 2"): WRONG_NUMBERS,
    RIGHT.replace("12 * 2 = 24", "72 - 48 = 24"): WRONG_NUMBERS,  # 72 is used up
    RIGHT.replace("9 * 8 = 72", "9 * 8 = 73"): ILLEGAL,
    RIGHT.replace("12 * 2 = 24", "12 + 2 = 24"): ILLEGAL,
    "9 8 6 2 | 9 / 8 = 1 | 1 6 2": ILLEGAL,
    "9 8 6 2 | 8 - 9 = 1 | 1 6 2": ILLEGAL,
    "9 8 6 2 | 9 + 8 = 17 | 17 6 2 | 17 + 6 = 23 | 23 2 | 23 + 2 = 25": WRONG_VALUE,
    "9 8 6 2 | " * 100_000: UNPARSABLE,
    "9 8 6 2 | " + "9" * 100_000 + " * 8 = 72": UNPARSABLE,
}


@pytest.mark.parametrize("answer", GRADES, ids=lambda answer: answer[:70])
def test_grades(answer: str) -> None:
    """Numbers may stand in any order; whatever is wrong has its kind, a reason, and nothing to win."""
    grade = TASK.grade(DATA, answer)
    assert grade.kind == GRADES[answer]
    assert grade.reward == float(grade.correct)
    assert grade.kind in (CORRECT, *TASK.kinds)
    assert grade.reason.endswith(".")
    assert len(grade.reason) < 300


def test_division_by_zero() -> None:
    """It has no value, whatever is said, not even where nothing is divided."""
    data = {**DATA, "cards": ["6", "6", "A", "K"], "values": [6, 6, 1, 10]}
    for step in ("1 / 0 = 0", "0 / 0 = 0", "0 / 0 = 24"):
        rest = "10" if step[0] == "1" else "1 10"
        grade = TASK.grade(data, f"6 6 1 10 | 6 - 6 = 0 | 0 1 10 | {step} | 0 {rest}")
        assert grade.kind in (ILLEGAL, WRONG_NUMBERS)
    assert TASK.grade(data, "6 6 1 10 | 6 - 6 = 0 | 0 1 10 | 0 / 10 = 0 | 0 1 | 1 / 0 = 24").kind == ILLEGAL


@given(st.data())
def test_a_word_changed_is_never_right_by_chance(data: st.DataObject) -> None:
    """A right answer with one word put in another's place is judged without error, and right only if it plays out."""
    words = RIGHT.split()
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] = data.draw(st.sampled_from([*TASK.words, "x", "-1", "1e1"]))
    grade = TASK.grade(DATA, " ".join(words))
    assert grade.correct == (" ".join(words) == RIGHT)


@given(st.text(alphabet="0123456789+-*/=| x", max_size=80))
def test_any_text_has_a_grade(answer: str) -> None:
    """Nothing that a model says ends a run."""
    assert TASK.grade(DATA, answer).kind in (CORRECT, *TASK.kinds)


def test_target() -> None:
    """Other targets are other problems, up to the highest number that there is a word for."""
    task = GeneralPointsSteps(target=HIGHEST)
    example = task.examples("id", 1)[0]
    assert task.grade(example.data, task.reference(example.data)).value == str(HIGHEST)
    with pytest.raises(ValidationError):
        GeneralPointsSteps(target=HIGHEST + 1)
    with pytest.raises(TaskError, match="has no split `pretrainin`"):
        task.examples("pretrainin")
