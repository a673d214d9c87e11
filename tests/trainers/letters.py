"""A task with a known optimum: say one certain letter, which is the same for all problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from evalkit.draw import Draw
from evalkit.task import CORRECT, Data, Grade, Task


class Letters(Task):
    """Say the letter: worth 1, anything else nothing."""

    name: ClassVar[str] = "letters"
    version: ClassVar[int] = 1
    episodes: ClassVar[int | None] = 8
    attempts: ClassVar[int] = 1
    max_tokens: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = ("wrong letter",)

    letter: str = "q"

    @property
    def splits(self) -> Mapping[str, str]:
        """Two, which differ in nothing but their draws."""
        return {"id": "some words", "ood": "other words"}

    def draw(self, split: str, draw: Draw) -> Data:
        """A word of four digits."""
        return {"word": f"{split[0]}{draw.below(10_000):04}"}

    def question(self, data: Data) -> str:
        """The word."""
        return str(data["word"])

    def grade(self, data: Data, answer: str) -> Grade:  # noqa: ARG002
        """Whether it is the letter."""
        right = answer == self.letter
        return Grade(CORRECT if right else "wrong letter", float(right), f"It is `{self.letter}`.")

    def reference(self, data: Data) -> str:  # noqa: ARG002
        """The letter."""
        return self.letter
