"""Who is told how far a pipeline is."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Told of stages as they begin and end, and of what their commands say."""

    def begin(self, total: int, done: int) -> None:
        """The run begins: so many stages in all, so many of them done earlier."""

    def stage(self, seed: int, name: str, title: str, command: str) -> None:
        """A stage begins; others may be at work. Without a command it is passed over."""

    def said(self, name: str, line: str) -> None:
        """The command of the stage of this name said this. May come from another thread."""

    def ended(self, name: str, state: str, seconds: float, message: str) -> None:
        """The stage of this name has ended, or was passed over."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


class Silence:
    """Tells nobody."""

    def begin(self, total: int, done: int) -> None:
        """Nothing."""

    def stage(self, seed: int, name: str, title: str, command: str) -> None:
        """Nothing."""

    def said(self, name: str, line: str) -> None:
        """Nothing."""

    def ended(self, name: str, state: str, seconds: float, message: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
