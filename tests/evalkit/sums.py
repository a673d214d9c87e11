"""The smallest of tasks: the README's example of how to add one."""

from __future__ import annotations

import re
from typing import ClassVar

from evalkit.draw import Draw
from evalkit.task import CORRECT, UNPARSABLE, Data, Grade, Task


class Sums(Task):
    """Add two numbers; out of distribution they are larger."""

    name: ClassVar[str] = "sums"
    version: ClassVar[int] = 1
    attempts: ClassVar[int] = 3

    top: int = 100

    def draw(self, split: str, draw: Draw) -> Data:
        top = self.top * (10 if split == "ood" else 1)
        return {"a": draw.below(top), "b": draw.below(top)}

    def question(self, data: Data) -> str:
        return f"What is {data['a']} + {data['b']}? Answer with the number alone."

    def reference(self, data: Data) -> str:
        return str(data["a"] + data["b"])

    def grade(self, data: Data, answer: str) -> Grade:
        if not re.fullmatch(r"[0-9]{1,9}", answer.strip(), re.ASCII):
            return Grade(UNPARSABLE, -1, "That is not a number.")
        if int(answer) != data["a"] + data["b"]:
            return Grade("wrong value", 0, f"{answer.strip()} is not the sum.", answer.strip())
        return Grade(CORRECT, 1, "Right.", answer.strip())
