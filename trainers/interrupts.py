"""Signals that ask a run to end, and that nobody swallows."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from types import FrameType

from trainers.progress import Progress


class Terminated(BaseException):
    """The process was asked to end by SIGTERM."""


_KINDS: Mapping[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class Interruptible:
    """Progress that hands on what it is told, and ends the run at its next step where a signal was lost.

    An exception that a signal raises is lost where it comes in the middle of a finaliser or of an import's lock.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._asked: type[BaseException] | None = None

    def watch(self) -> None:
        """Take SIGINT and SIGTERM from here on."""
        for number in _KINDS:
            signal.signal(number, self._end)

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Hand on, unless the run is to end."""
        self._check()
        self._progress.phase(name, total, done)

    def step(self, metrics: Mapping[str, float]) -> None:
        """Hand on, unless the run is to end."""
        self._check()
        self._progress.step(metrics)

    def note(self, text: str) -> None:
        """Hand on."""
        self._progress.note(text)

    def _end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._asked = _KINDS[number]
        self._check()

    def _check(self) -> None:
        if self._asked is not None:
            raise self._asked
