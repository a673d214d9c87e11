"""Who wants to know how far a sweep is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from evalkit.progress import Progress as ScoringProgress
from evalkit.progress import Silence

if TYPE_CHECKING:
    from surgery.executor import Progress as MakingProgress


class Progress(Protocol):
    """Told from one thread, in the order in which things happen."""

    def begin(self, models: int, variants: int, known: int) -> None:
        """The sweep starts: so many models and variants to score, so many variants known from an earlier run."""

    def making(self, variants: int) -> AbstractContextManager[MakingProgress | None]:
        """So many variants are being made while the context lasts."""

    def scoring(self, name: str) -> AbstractContextManager[ScoringProgress]:
        """A model or variant is being scored while the context lasts."""

    def note(self, text: str) -> None:
        """Something that a user should know."""


class Quiet:
    """Tells nobody."""

    def begin(self, models: int, variants: int, known: int) -> None:
        """Nothing."""

    def making(self, variants: int) -> AbstractContextManager[MakingProgress | None]:  # noqa: ARG002
        """Nothing."""
        return nullcontext(None)

    def scoring(self, name: str) -> AbstractContextManager[ScoringProgress]:  # noqa: ARG002
        """Nothing."""
        return nullcontext(Silence())

    def note(self, text: str) -> None:
        """Nothing."""
