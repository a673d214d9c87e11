"""GeneralPoints, the card game of Chu et al. 2025 (arXiv 2501.17161): make 24 of four cards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from evalkit.answers import ILLEGAL, WRONG_NUMBERS, WRONG_VALUE, find_object, graded, quote
from evalkit.draw import Draw
from evalkit.formula import FormulaError, parse
from evalkit.points import MAX_CARDS, MIN_CARDS, solution, solvable
from evalkit.task import CORRECT, UNPARSABLE, Data, Grade, Task

FACES = ("J", "Q", "K")
RANKS = ("A", *map(str, range(2, 11)), *FACES)
FACE_VALUES = range(5, 14)  # what face cards count in the variants that separate rule-following from memorisation
MAX_TARGET = 1000  # up to here, most hands of six cards make any target

_RULES: Mapping[str, Sequence[int]] = {
    "id": (10, 10, 10),
    "ood": (11, 12, 13),
    **{f"faces_{value}": (value,) * 3 for value in FACE_VALUES},
}
_SHOWN_NUMBERS = 6  # wrong numbers that a reason names
# Answers to other numbers of cards than are dealt, so that an example of the form is never a solution.
_EXAMPLE = ("8 and A with the target 9", '{"cards": ["8", "A"], "number": [8, 1], "formula": "8+1=9"}')
_EXAMPLE_OF_3 = (
    "8, A and 2 with the target 18",
    '{"cards": ["8", "A", "2"], "number": [8, 1, 2], "formula": "(8+1)*2=18"}',
)


class GeneralPoints(Task):
    """Make a formula of playing cards that comes to 24; out of distribution, face cards count otherwise."""

    name: ClassVar[str] = "general_points"
    version: ClassVar[int] = 1
    attempts: ClassVar[int] = 5
    max_tokens: ClassVar[int] = 256
    kinds: ClassVar[tuple[str, ...]] = (UNPARSABLE, ILLEGAL, WRONG_NUMBERS, WRONG_VALUE)

    cards: int = Field(4, ge=MIN_CARDS, le=MAX_CARDS, description="cards of a hand")
    target: int = Field(24, ge=0, le=MAX_TARGET, description="what the formula must come to")

    @property
    def splits(self) -> Mapping[str, str]:
        """`id`, `ood`, and the variants; in all but `id`, every hand has a face card."""
        return {
            "id": "J, Q and K count as 10",
            "ood": "J, Q and K count as 11, 12 and 13",
            **{f"faces_{value}": f"J, Q and K all count as {value}" for value in FACE_VALUES},
            "mixed": f"every hand has its own values for J, Q and K, from {FACE_VALUES[0]} to {FACE_VALUES[-1]}",
        }

    def draw(self, split: str, draw: Draw) -> Data | None:
        """A hand as `cards` and `values`, with the `rule` for face cards and the `target`; None if unsolvable."""
        cards = [draw.choice(RANKS) for _ in range(self.cards if split == "id" else self.cards - 1)]
        if split != "id":
            cards = draw.shuffled([*cards, draw.choice(FACES)])
        counts = [draw.choice(FACE_VALUES) for _ in FACES] if split == "mixed" else _RULES[split]
        rule = dict(zip(FACES, counts, strict=True))
        values = [rule[card] if card in rule else 1 if card == "A" else int(card) for card in cards]
        if not solvable(values, self.target):
            return None
        return {"cards": cards, "values": values, "rule": rule, "target": self.target}

    def key(self, data: Data) -> str:
        """The sorted values: hands of the same values have the same solutions, whatever the cards and the rule."""
        return ",".join(map(str, sorted(data["values"])))

    def question(self, data: Data) -> str:
        """The game, the rule for face cards, what may be used, and the form of the answer."""
        jack, queen, king = (data["rule"][face] for face in FACES)
        cards, answer = _EXAMPLE if len(data["cards"]) != 2 else _EXAMPLE_OF_3
        return (
            f"Write a formula that comes to {data['target']} and uses the value of each of these cards exactly once:\n"
            f"{json.dumps(data['cards'])}\n"
            f"Cards from 2 to 10 count as their number, A counts as 1, J counts as {jack}, Q counts as {queen} and K "
            f"counts as {king}. Besides these values, the formula may have only + - * / and parentheses.\n"
            "Answer with a JSON object with the keys `cards` (the list above), `number` (the values of these cards, in "
            f"the same order) and `formula` (a string that ends in `={data['target']}`). For the cards {cards}, an "
            f"answer would be:\n{answer}"
        )

    def grade(self, data: Data, answer: str) -> Grade:
        """Judge the `formula` of the last JSON object that has one; `cards` and `number` are not scored."""
        found = find_object(answer, "formula")
        if isinstance(found, str):
            return graded(UNPARSABLE, found)
        text: Any = found["formula"]
        shown = quote(text)
        if not isinstance(text, str):
            return graded(ILLEGAL, f"The `formula` is {shown}, not a string.")
        try:
            formula = parse(text)
            if sorted(formula.numbers) != sorted(data["values"]):  # before evaluation, which is thereby bounded
                return graded(WRONG_NUMBERS, f"The formula {shown} {_misuse(formula.numbers, data['values'])}.")
            value = formula.value()
        except FormulaError as error:
            return graded(ILLEGAL, f"The formula {shown} is not legal: {error}.")
        if value != data["target"]:
            return graded(WRONG_VALUE, f"The formula {shown} comes to {value}, not {data['target']}.", str(value))
        return graded(CORRECT, f"The formula {shown} comes to {value}.", str(value))

    def reference(self, data: Data) -> str:
        """One of the solutions, always the same for the same hand."""
        draw = Draw(self.name, "reference", json.dumps(data, sort_keys=True))
        formula = solution(data["values"], data["target"], draw)
        return json.dumps({"cards": data["cards"], "number": data["values"], "formula": f"{formula}={data['target']}"})


def _misuse(used: Sequence[int], values: Sequence[int]) -> str:
    """What is wrong with the numbers that were used, as the end of a sentence."""
    over, under = Counter(used) - Counter(values), Counter(values) - Counter(used)
    strange = [number for number in over if number not in values]
    clauses = (
        ("uses numbers of no card ({})", strange),
        ("uses {} too often", [number for number in over if number in values]),
        ("leaves out {}", sorted(under.elements())),
    )
    return " and ".join(clause.format(_listed(numbers)) for clause, numbers in clauses if numbers)


def _listed(numbers: Sequence[int]) -> str:
    shown: Iterable[str] = map(str, numbers[:_SHOWN_NUMBERS])
    return ", ".join(shown) + (" and others" if len(numbers) > _SHOWN_NUMBERS else "")
