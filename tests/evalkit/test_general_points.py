"""GeneralPoints: hands, prompts and grades."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from evalkit.draw import Draw
from evalkit.errors import TaskError
from evalkit.points import solvable
from evalkit.task import CORRECT, PARTS, UNPARSABLE
from evalkit.tasks.general_points import FACES, RANKS, GeneralPoints

TASK = GeneralPoints()
DATA = {
    "cards": ["J", "5", "7", "4"],
    "values": [10, 5, 7, 4],
    "rule": {"J": 10, "Q": 10, "K": 10},
    "target": 24,
}

# The first three hands of each split for seed 0: they must never change without a new version of the task.
GOLDEN = {
    "id": ["A 6 8 3", "2 K 5 8", "5 Q 3 K"],
    "ood": ["J 6 6 7", "4 A 2 K", "J 6 2 10"],
    "faces_5": ["J 9 J 9", "3 3 9 K", "J Q 9 8"],
    "faces_6": ["5 J 6 Q", "J 4 2 3", "Q A Q Q"],
    "faces_7": ["A J 10 A", "10 K A J", "7 4 4 Q"],
    "faces_8": ["2 3 A J", "Q 3 4 9", "Q 6 J 6"],
    "faces_9": ["10 8 3 K", "Q A K 7", "7 J 8 3"],
    "faces_10": ["J 3 7 10", "9 A Q 5", "J 7 3 10"],
    "faces_11": ["A 3 A K", "Q 6 5 5", "K 6 7 J"],
    "faces_12": ["J A 8 4", "Q 8 10 Q", "J J 9 K"],
    "faces_13": ["K 8 4 6", "6 3 J K", "Q K 9 2"],
    "mixed": ["5 10 Q 3", "5 K 6 K", "J A 3 7"],
}


def test_hands_are_pinned() -> None:
    """The same seed gives the same hands on every platform and in every version of Python."""
    hands = {split: [" ".join(e.data["cards"]) for e in TASK.examples(split, 3)] for split in TASK.splits}
    assert hands == GOLDEN


def test_references_are_pinned() -> None:
    """So does the same hand give the same reference answer."""
    answers = [json.loads(TASK.reference(example.data)) for example in TASK.examples("ood", 3)]
    assert answers == [
        {"cards": ["J", "6", "6", "7"], "number": [11, 6, 6, 7], "formula": "6*11-6*7=24"},
        {"cards": ["4", "A", "2", "K"], "number": [4, 1, 2, 13], "formula": "4/(2/(13-1))=24"},
        {"cards": ["J", "6", "2", "10"], "number": [11, 6, 2, 10], "formula": "(6+11)*2-10=24"},
    ]


def expected_values(cards: list[str], rule: dict[str, int]) -> list[int]:
    plain = {"A": 1, **{str(n): n for n in range(2, 11)}}
    return [{**plain, **rule}[card] for card in cards]


@pytest.mark.parametrize("split", GOLDEN)
def test_hands_are_as_the_split_says(split: str) -> None:
    """Ranks, rule, face cards and values fit the split, the hand can be solved, and the data is plain JSON."""
    rules = {"id": {(10, 10, 10)}, "ood": {(11, 12, 13)}}
    seen_ranks, seen_rules, faces_seen = set(), set(), set()
    for example in TASK.examples(split, 150):
        data = example.data
        assert json.loads(json.dumps(data)) == data
        assert set(data) == {"cards", "values", "rule", "target"}
        assert len(data["cards"]) == 4
        assert set(data["rule"]) == set(FACES)
        assert data["values"] == expected_values(data["cards"], data["rule"])
        assert solvable(data["values"], 24)
        assert example.key == ",".join(map(str, sorted(data["values"])))
        seen_ranks |= set(data["cards"])
        seen_rules.add(tuple(data["rule"][face] for face in FACES))
        faces_seen.add(sum(card in FACES for card in data["cards"]))
    assert seen_ranks == set(RANKS)
    assert (0 in faces_seen) == (split == "id")
    if split == "mixed":
        assert len(seen_rules) > 100
        assert {value for rule in seen_rules for value in rule} == set(range(5, 14))
    else:
        assert seen_rules == rules.get(split) or seen_rules == {(int(split.split("_")[1]),) * 3}


def test_face_cards_lie_anywhere() -> None:
    """The face card that a hand is given is shuffled in, not appended."""
    places = [[card in FACES for card in example.data["cards"]] for example in TASK.examples("ood", 300)]
    for place in range(4):
        assert 60 < sum(hand[place] for hand in places) < 240


def test_parts_never_share_values() -> None:
    """What is trained on under any rule is never tested under any other: parts share no multiset of values."""
    values = {
        part: {tuple(sorted(e.data["values"])) for split in TASK.splits for e in TASK.examples(split, 120, part=part)}
        for part in PARTS
    }
    assert sum(map(len, values.values())) == len(set.union(*values.values()))


@pytest.mark.parametrize(("cards", "target"), [(2, 3), (3, 24), (5, 24), (6, 100), (4, 0), (4, 36)])
def test_other_games(cards: int, target: int) -> None:
    """Other numbers of cards and targets give hands of that size, and references that are right."""
    task = GeneralPoints(cards=cards, target=target)
    for split in ("id", "ood", "mixed"):
        for example in task.examples(split, 3):
            assert len(example.data["cards"]) == cards
            assert task.grade(example.data, task.reference(example.data)).correct
            assert f"comes to {target} " in task.question(example.data)


@pytest.mark.parametrize("parameters", [{"cards": 1}, {"cards": 7}, {"target": -1}, {"target": 1001}, {"faces": 3}])
def test_impossible_parameters(parameters: dict[str, int]) -> None:
    """Numbers of cards and targets beyond the bounds, and other parameters, are refused."""
    with pytest.raises(ValidationError):
        GeneralPoints.model_validate(parameters)


def test_a_game_without_hands() -> None:
    """Where no hand can reach the target, the error comes at once, not never."""
    with pytest.raises(TaskError, match="has no examples"):
        GeneralPoints(cards=2, target=1000).examples("id", 1)


def test_tiny_games_run_out() -> None:
    """Two cards that make 12: the test part has two hands, then there are no more."""
    task = GeneralPoints(cards=2, target=12)
    with pytest.raises(TaskError, match="no more than 2 examples"):
        task.examples("id", 3)
    assert len(task.examples("id", 2)) == 2


def test_question() -> None:
    """The whole prompt; it shows the hand and the rule, and asks for the three keys."""
    assert TASK.question({**DATA, "rule": {"J": 5, "Q": 6, "K": 7}}) == (
        "Write a formula that comes to 24 and uses the value of each of these cards exactly once:\n"
        '["J", "5", "7", "4"]\n'
        "Cards from 2 to 10 count as their number, A counts as 1, J counts as 5, Q counts as 6 and K counts as 7. "
        "Besides these values, the formula may have only + - * / and parentheses.\n"
        "Answer with a JSON object with the keys `cards` (the list above), `number` (the values of these cards, in "
        "the same order) and `formula` (a string that ends in `=24`). For the cards 8 and A with the target 9, an "
        "answer would be:\n"
        '{"cards": ["8", "A"], "number": [8, 1], "formula": "8+1=9"}'
    )


@pytest.mark.parametrize("cards", [["8", "A"], ["A", "8", "2"], ["8", "A", "2", "3"], ["8", "A", "A", "A", "A", "A"]])
@pytest.mark.parametrize("target", [9, 18, 24])
def test_the_example_is_never_a_solution(cards: list[str], target: int) -> None:
    """The prompt's own example, given back as the answer, is well-formed but never right, not even for its cards."""
    data = {**DATA, "cards": cards, "values": expected_values(cards, {}), "target": target}
    assert TASK.grade(data, TASK.question(data)).kind == "wrong numbers"


@pytest.mark.parametrize("split", GOLDEN)
def test_references_are_right(split: str) -> None:
    """A reference shows the cards and their values, is graded correct, and is the same each time."""
    for example in TASK.examples(split, 20):
        answer = TASK.reference(example.data)
        grade = TASK.grade(example.data, answer)
        assert (grade.kind, grade.reward, grade.value) == (CORRECT, 5.0, "24")
        shown = json.loads(answer)
        assert shown["cards"] == example.data["cards"]
        assert shown["number"] == example.data["values"]
        assert shown["formula"].endswith("=24")
        assert TASK.reference(json.loads(json.dumps(example.data))) == answer


def answer(formula: object) -> str:
    return json.dumps({"cards": ["J", "5", "7", "4"], "number": [10, 5, 7, 4], "formula": formula})


NO_OBJECT = "The answer holds no valid JSON object with the key `formula`."


@pytest.mark.parametrize(
    ("given", "kind", "reward", "reason", "value"),
    [
        (answer("(7-5)*10+4=24"), CORRECT, 5, "The formula `(7-5)*10+4=24` comes to 24.", "24"),
        (answer("4 + 10*(7 - 5)"), CORRECT, 5, "The formula `4 + 10*(7 - 5)` comes to 24.", "24"),
        (answer("-(5-7)*10+4=7"), CORRECT, 5, "The formula `-(5-7)*10+4=7` comes to 24.", "24"),
        ('{"formula": "(7-5)*10+4"}', CORRECT, 5, "The formula `(7-5)*10+4` comes to 24.", "24"),
        (
            '```json\n{"cards": "?", "number": NULL}\n{"cards": [], "number": [1, 1], "formula": "(7-5)*10+4=24"}\n```',
            CORRECT,
            5,
            "The formula `(7-5)*10+4=24` comes to 24.",
            "24",
        ),
        (answer("7-5*10+4=24"), "wrong value", -1, "The formula `7-5*10+4=24` comes to -39, not 24.", "-39"),
        (answer("7/(5+10)-4"), "wrong value", -1, "The formula `7/(5+10)-4` comes to -53/15, not 24.", "-53/15"),
        (answer("(7-5)*10=24"), "wrong numbers", -2, "The formula `(7-5)*10=24` leaves out 4.", None),
        (answer("4+4*5=24"), "wrong numbers", -2, None, None),
        (
            answer("(7-5)*10+4+4-4=24"),
            "wrong numbers",
            -2,
            "The formula `(7-5)*10+4+4-4=24` uses 4 too often.",
            None,
        ),
        (
            answer("11+13"),
            "wrong numbers",
            -2,
            "The formula `11+13` uses numbers of no card (11, 13) and leaves out 4, 5, 7, 10.",
            None,
        ),
        (answer("24"), "wrong numbers", -2, None, None),
        (answer("24=(7-5)*10+4"), "wrong numbers", -2, None, None),
        (answer("1054/7"), "wrong numbers", -2, None, None),
        (
            answer("+".join(map(str, range(20, 60)))),
            "wrong numbers",
            -2,
            (
                f"The formula `{'+'.join(map(str, range(20, 40)))}+…` uses numbers of no card (20, 21, 22, 23, 24, 25 "
                "and others) and leaves out 4, 5, 7, 10."
            ),
            None,
        ),
        (answer("10/0"), "wrong numbers", -2, None, None),
        (
            answer("J*(7-5)+4"),
            "illegal",
            -3,
            "The formula `J*(7-5)+4` is not legal: `J` is none of digits, + - * / and parentheses.",
            None,
        ),
        (answer("9**9**9"), "illegal", -3, None, None),
        (answer("10**5//7-4"), "illegal", -3, None, None),
        (answer("(7-5)10+4=24"), "illegal", -3, None, None),
        (answer("(7-5)*10+04"), "illegal", -3, None, None),
        (answer("(7-5)*10.0+4"), "illegal", -3, None, None),
        (answer("（7-5）*10+4"), "illegal", -3, None, None),
        (answer("(7−5)×10+4"), "illegal", -3, None, None),
        (answer("(7-5)*1٠+4"), "illegal", -3, None, None),
        (answer("(7-5)*10+4\n=24"), "illegal", -3, None, None),
        (answer("(7-5)*10+4;import os"), "illegal", -3, None, None),
        (answer("exit()"), "illegal", -3, None, None),
        (answer("(" * 5000 + "(7-5)*10+4" + ")" * 5000), "unparsable", -3, NO_OBJECT, None),
        (answer("(" * 2000 + "(7-5)*10+4" + ")" * 2000), "illegal", -3, None, None),
        (answer("\ud800"), "illegal", -3, None, None),
        (answer("\0"), "illegal", -3, None, None),
        (answer(""), "illegal", -3, "The formula `` is not legal: it is empty.", None),
        (answer("=24"), "illegal", -3, None, None),
        (answer(24), "illegal", -3, "The `formula` is `24`, not a string.", None),
        (answer(None), "illegal", -3, "The `formula` is nothing, not a string.", None),
        (answer(True), "illegal", -3, None, None),
        (answer(["(7-5)*10+4"]), "illegal", -3, "The `formula` is a list, not a string.", None),
        (answer({"formula": 0}), "illegal", -3, None, None),
        ("", UNPARSABLE, -3, NO_OBJECT, None),
        ("(7-5)*10+4=24", UNPARSABLE, -3, NO_OBJECT, None),
        ("formula: (7-5)*10+4=24", UNPARSABLE, -3, NO_OBJECT, None),
        ("{'formula': '(7-5)*10+4=24'}", UNPARSABLE, -3, NO_OBJECT, None),
        ('{"Formula": "(7-5)*10+4=24"}', UNPARSABLE, -3, NO_OBJECT, None),
        ('{"formula": "(7-5)*10+4=24"', UNPARSABLE, -3, NO_OBJECT, None),
        ('{"formula": "1", "formula": "(7-5)*10+4=24"}', UNPARSABLE, -3, None, None),
        ("{" * 100_000, UNPARSABLE, -3, NO_OBJECT, None),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_grade(given: str, kind: str, reward: float, reason: str | None, value: str | None) -> None:
    """Each answer has its kind, its reward, a short reason in one line, and its value where it was evaluated."""
    grade = TASK.grade(DATA, given)
    assert (grade.kind, grade.reward, grade.value) == (kind, reward, value)
    assert grade.reason == reason or reason is None
    assert grade.reason.isprintable()
    assert len(grade.reason) < 250
    assert kind == CORRECT or kind in TASK.kinds


@pytest.mark.parametrize(
    ("values", "formula", "kind", "value"),
    [
        ([3, 3, 8, 8], "8/(3-8/3)", CORRECT, "24"),  # floats come to 23.999999999999989
        ([1, 5, 5, 5], "5*(5-1/5)", CORRECT, "24"),
        ([3, 3, 7, 7], "(3+3/7)*7", CORRECT, "24"),
        ([10, 10, 10, 10], "10/(10-10)+10", "illegal", None),
        ([1, 1, 1, 1], "1/(1-1/1)", "illegal", None),
        ([1, 1, 1, 1], "1-1-1-1", "wrong value", "-2"),
        ([1, 2, 3, 4], "1*2*3*4", CORRECT, "24"),
        ([1, 2, 3, 4], "12+3*4", "wrong numbers", None),
        ([13, 13, 1, 12], "13-13/1+12", "wrong value", "12"),
    ],
)
def test_grades_are_exact(values: list[int], formula: str, kind: str, value: str | None) -> None:
    """Thirds and fifths are what they are; a division by zero is illegal."""
    data: dict[str, Any] = {**DATA, "values": values}
    grade = TASK.grade(data, json.dumps({"formula": formula}))
    assert (grade.kind, grade.value) == (kind, value)


def test_division_by_zero_is_told() -> None:
    """The reason names it."""
    grade = TASK.grade({**DATA, "values": [10, 10, 10, 10]}, answer("10/(10-10)+10"))
    assert grade.reason == "The formula `10/(10-10)+10` is not legal: it divides by zero."


def test_the_data_is_left_alone() -> None:
    """Grading and asking change nothing in the data, which examples share."""
    before = json.dumps(DATA)
    TASK.grade(DATA, answer("1+1"))
    TASK.question(DATA)
    TASK.reference(DATA)
    assert json.dumps(DATA) == before


def test_most_draws_are_hands() -> None:
    """About four of five draws can be solved, so that drawing takes no patience."""
    draw = Draw("share")
    found = [TASK.draw("id", draw) for _ in range(500)]
    assert 0.7 < sum(data is not None for data in found) / 500 < 0.95
