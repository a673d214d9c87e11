"""Who wants to know how far an evaluation is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told from one thread, in the order in which things happen."""

    def model(self, name: str, total: int, reused: int) -> None:
        """A model's turn: so many episodes and losses in all, so many of them known from an earlier run."""

    def turn(self, number: int, live: int) -> None:
        """Turn `number`, from 1, begins with so many live episodes."""

    def answered(self, tokens: int) -> None:
        """An answer of so many tokens was generated or scored."""

    def finished(self) -> None:
        """An episode or a loss is done."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


class Silence:
    """Tells nobody."""

    def model(self, name: str, total: int, reused: int) -> None:
        """Nothing."""

    def turn(self, number: int, live: int) -> None:
        """Nothing."""

    def answered(self, tokens: int) -> None:
        """Nothing."""

    def finished(self) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
