"""Who is told how far a pipeline is."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Told of stages as they begin and end, and of what their commands say."""

    def begin(self, total: int, done: int) -> None:
        """The run begins: so many stages in all, so many of them done earlier."""

    def stage(self, seed: int, name: str, title: str, command: str) -> None:
        """A stage begins."""

    def said(self, line: str) -> None:
        """The stage's command said this. May come from another thread."""

    def ended(self, state: str, seconds: float, message: str) -> None:
        """The stage at hand, or one that was passed over, has ended."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


class Silence:
    """Tells nobody."""

    def begin(self, total: int, done: int) -> None:
        """Nothing."""

    def stage(self, seed: int, name: str, title: str, command: str) -> None:
        """Nothing."""

    def said(self, line: str) -> None:
        """Nothing."""

    def ended(self, state: str, seconds: float, message: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
