"""Every error that `evalkit` raises on purpose, besides those of `surgery`.

    SurgeryError
    ├── TaskError     (ValueError)    a task, its parameters or its data are wrong
    ├── EngineError   (RuntimeError)  an engine cannot be had, cannot take a model or a prompt, or has died
    ├── ResultsError  (OSError)       results cannot be read or written
    └── SweepError    (ValueError)    a sweep is malformed, or does not fit its models

A message says what was found, what was expected and what to do.
"""

from __future__ import annotations

from surgery.errors import Faults, SurgeryError

FOREIGN = 200  # characters of a library's message that are quoted


class TaskError(SurgeryError, ValueError):
    """There is no such task, or its parameters, splits or data are wrong."""


class EngineError(SurgeryError, RuntimeError):
    """An engine is not installed, refuses a model, a prompt or an option, or has died."""


class ResultsError(SurgeryError, OSError):
    """The results' directory cannot be read or written, or another run is writing there."""


class SweepError(Faults, ValueError):
    """A sweep is malformed, or does not fit its models; `faults` lists everything that is wrong with it."""


def first_line(error: BaseException) -> str:
    """A foreign error as part of a message: its class and first line, since libraries write pages."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f"{name}: {lines[0].strip()[:FOREIGN]}" if lines else name
