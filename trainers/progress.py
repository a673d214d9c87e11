"""Who wants to know how far a training run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Told from the main process alone, in the order in which things happen."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """A phase begins (`training`, `episodes of update 3`): so many steps in all, so many of them done earlier."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step of the phase is done; `metrics` are the figures worth showing beside the bar, at most three."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


class Silence:
    """Tells nobody."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
