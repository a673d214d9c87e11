"""The 24 game in a language of 210 words, with answers step by step: for models small enough to train on a CPU."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import ClassVar

from pydantic import Field

from evalkit.answers import ILLEGAL, WRONG_NUMBERS, WRONG_VALUE, quote
from evalkit.draw import Draw
from evalkit.step_solver import HIGHEST, reaches, steps, targets
from evalkit.task import CORRECT, UNPARSABLE, Data, Grade, Task
from evalkit.tasks.general_points import FACES, RANKS

CARDS = 4
PRETRAINING = "pretraining"

_VALUES = range(1, 14)  # what a face card may count as while pretraining
_RULES: Mapping[str, Sequence[int]] = {"id": (10, 10, 10), "ood": (11, 12, 13)}
_TARGETS = range(1, 101)  # of pretraining
_PER_CENT_THREE_CARDS = 20
_PER_CENT_TARGET = 3  # of pretraining's problems that have the `target`, apart from those that draw it by chance

_NUMBER = re.compile(r"\d{1,6}", re.ASCII)  # more digits than any result of the cards has
_STEP = re.compile(r"(\d{1,6}) ([-+*/]) (\d{1,6}) = (\d{1,6})", re.ASCII)
_LONGEST = 400  # characters of an answer that are looked at; a right one has about 70


class GeneralPointsSteps(Task):
    """General Points with words for tokens and answers step by step, for tiny models; they know no other text.

    Asked `J=10 Q=10 K=10 24 9 A K 6`, a right answer is `9 1 10 6 | 10 - 9 = 1 | 1 1 6 | ...`: the cards' values, then
    in turn a step and what is left after it, up to the step that comes to the target. Numbers are whole, and in
    reference answers at most `evalkit.step_solver.HIGHEST`; hands that need others are not dealt.
    Unlike in `general_points`, all hands of values are equally likely, so that a test meets as many as there are: hands
    of the same values are one problem (see `key`), and of few problems little can be known.
    The split `pretraining` has other rules, targets and numbers of cards as well: what there is to know before
    fine-tuning for one rule and one target.
    """

    name: ClassVar[str] = "general_points_steps"
    version: ClassVar[int] = 1
    max_tokens: ClassVar[int] = 64
    kinds: ClassVar[tuple[str, ...]] = (UNPARSABLE, ILLEGAL, WRONG_NUMBERS, WRONG_VALUE)

    target: int = Field(24, ge=0, le=HIGHEST, description="what the last step must come to")

    @property
    def splits(self) -> Mapping[str, str]:
        """As of `general_points`, and the one to pretrain on."""
        return {
            "id": "J, Q and K count as 10",
            "ood": "J, Q and K count as 11, 12 and 13; every hand has a face card",
            PRETRAINING: "any rule, targets from 1 to 100, three or four cards; to learn from, not to be scored",
        }

    @property
    def words(self) -> tuple[str, ...]:
        """Those of questions and answers."""
        rules = [f"{face}={value}" for face in FACES for value in _VALUES]
        return (*map(str, range(HIGHEST + 1)), *(rank for rank in RANKS if rank.isalpha()), *"+-*/=|", *rules)

    def draw(self, split: str, draw: Draw) -> Data | None:
        """A hand as `cards` and `values`, with the `rule` for face cards and the `target`; None if unsolvable."""
        if split == PRETRAINING:
            return self._pretraining(draw)
        hands = _hands(split == "ood", self.target)
        if not hands:
            return None
        values = draw.shuffled(draw.choice(hands))
        rule = dict(zip(FACES, _RULES[split], strict=True))
        cards = [draw.choice([rank for rank in RANKS if _value(rank, rule) == value]) for value in values]
        return {"cards": cards, "values": values, "rule": rule, "target": self.target}

    def key(self, data: Data) -> str:
        """The sorted values: hands of the same values have the same solutions, whatever the cards and the rule."""
        return ",".join(map(str, sorted(data["values"])))

    def question(self, data: Data) -> str:
        """The rule, the target, the cards."""
        rule = [f"{face}={data['rule'][face]}" for face in FACES]
        return " ".join([*rule, str(data["target"]), *data["cards"]])

    def grade(self, data: Data, answer: str) -> Grade:
        """Play the steps; the first thing that is wrong with them is the reason."""
        parts = [" ".join(part.split()) for part in answer[:_LONGEST].split("|")]
        pool: list[int] = list(data["values"])
        expected = 2 * (len(pool) - 1)
        for number, part in enumerate(parts[:expected]):
            wrong = _misread(part, pool) if number % 2 == 0 else _misplayed(part, pool)
            if wrong is not None:
                return wrong
        if len(parts) != expected or len(answer) > _LONGEST:
            return _failed(UNPARSABLE, f"The answer has {len(parts)} parts between `|`, not {expected}.")
        (value,) = pool
        if value != data["target"]:
            return _failed(WRONG_VALUE, f"The steps come to {value}, not {data['target']}.", str(value))
        return Grade(CORRECT, 1.0, f"The steps come to {value}.", str(value))

    def reference(self, data: Data) -> str:
        """One of the solutions, always the same for the same hand."""
        draw = Draw(self.name, "reference", json.dumps(data, sort_keys=True))
        pool: list[int] = list(data["values"])
        parts = [_listed(pool)]
        for step in steps(pool, data["target"], draw):
            parts.append(f"{step.left} {step.operator} {step.right} = {step.result}")
            _take(pool, step.left, step.right)
            pool.insert(0, step.result)
            parts.append(_listed(pool))
        return " | ".join(parts[:-1])  # what is left at the end is the last result

    def _pretraining(self, draw: Draw) -> Data | None:
        count = CARDS - 1 if draw.below(100) < _PER_CENT_THREE_CARDS else CARDS
        cards = [draw.choice(RANKS) for _ in range(count)]
        rules = (_RULES["id"], _RULES["ood"], [draw.choice(_VALUES) for _ in FACES])
        rule = dict(zip(FACES, draw.choice(rules), strict=True))
        values = _values(cards, rule)
        if draw.below(100) < _PER_CENT_TARGET:
            target = self.target
            if not reaches(values, target):
                return None
        else:
            target = draw.choice([target for target in targets(values) if target in _TARGETS])
        return {"cards": cards, "values": values, "rule": rule, "target": target}


@lru_cache(maxsize=8)
def _hands(faces: bool, target: int) -> tuple[tuple[int, ...], ...]:
    """The values of all hands that come to the target: out of distribution those with faces of their own values."""
    most = max(_RULES["ood" if faces else "id"])
    found = combinations_with_replacement(range(1, most + 1), CARDS)
    return tuple(hand for hand in found if reaches(hand, target) and (not faces or hand[-1] in _RULES["ood"]))


def _values(cards: Sequence[str], rule: Mapping[str, int]) -> list[int]:
    return [_value(card, rule) for card in cards]


def _value(card: str, rule: Mapping[str, int]) -> int:
    return rule[card] if card in rule else 1 if card == "A" else int(card)


def _misread(part: str, pool: Sequence[int]) -> Grade | None:
    """What is wrong with the numbers that are said to be there, or None."""
    words = part.split()
    if not words or not all(_NUMBER.fullmatch(word) for word in words):
        return _failed(UNPARSABLE, f"Found {quote(part)} where numbers are expected.")
    if Counter(map(int, words)) != Counter(pool):
        return _failed(WRONG_NUMBERS, f"Found the numbers {quote(part)}, but they are {_listed(pool)}.")
    return None


def _misplayed(part: str, pool: list[int]) -> Grade | None:
    """Play a step on the pool; gives what is wrong with it, or None."""
    found = _STEP.fullmatch(part)
    if found is None:
        return _failed(UNPARSABLE, f"Found {quote(part)} where a step such as `9 * 8 = 72` is expected.")
    left, right, result = int(found[1]), int(found[3]), int(found[4])
    if Counter((left, right)) - Counter(pool):
        return _failed(WRONG_NUMBERS, f"The step {quote(part)} takes numbers of which only {_listed(pool)} are left.")
    if found[2] == "/" and not right:
        return _failed(ILLEGAL, f"The step {quote(part)} divides by zero.")
    # whole numbers only: exact, and a quotient is right where its product is
    right_result = {"+": left + right, "-": left - right, "*": left * right, "/": left}[found[2]]
    if right_result != (result * right if found[2] == "/" else result):
        return _failed(ILLEGAL, f"The step {quote(part)} is not true.")
    _take(pool, left, right)
    pool.append(result)
    return None


def _take(pool: list[int], *numbers: int) -> None:
    for number in numbers:
        pool.remove(number)


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _failed(kind: str, reason: str, value: str | None = None) -> Grade:
    return Grade(kind, 0.0, reason, value)
