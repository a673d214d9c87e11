"""Every error that `surgery` raises on purpose.

    SurgeryError
    ├── RecipeError      (ValueError)       the recipe is wrong, whatever the checkpoints
    ├── CheckpointError  (ValueError)       an input cannot be read or cannot be trusted
    ├── PlanError        (ValueError)       recipe and checkpoints do not fit together
    ├── NumericalError   (ArithmeticError)  a matrix cannot be decomposed, or a result cannot be stored
    ├── OutputError      (OSError)          the output cannot be written, or must not be touched
    ├── VerifyError      (ValueError)       an output does not match its manifest
    └── NotInstalledError (ImportError)     a library that only some commands need is missing

A message says what was found, what was expected and what to do. The command line catches `SurgeryError`
alone; anything else that reaches a user is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_FAULTS = 25  # a screenful; the rest is counted


class SurgeryError(Exception):
    """Base of all errors of this package."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and where: `where` is `recipe.yaml:9 steps[0].head` or a tensor's name."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class Faults(SurgeryError):
    """An error that reports all its faults at once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        lines = [str(fault) for fault in self.faults[:SHOWN_FAULTS]]
        if len(self.faults) > SHOWN_FAULTS:
            lines.append(f"... and {len(self.faults) - SHOWN_FAULTS} more")
        super().__init__("\n".join(lines))


class RecipeError(Faults, ValueError):
    """A recipe is malformed; `faults` lists everything that is wrong with it."""


class CheckpointError(SurgeryError, ValueError):
    """An input checkpoint is missing, malformed, hostile or of a kind that is not supported."""


class PlanError(Faults, ValueError):
    """Recipe and checkpoints do not fit together; `faults` lists every conflict."""


class NumericalError(SurgeryError, ArithmeticError):
    """A matrix holds NaN or infinity, a decomposition failed, or a result overflows the output's dtype."""


class OutputError(SurgeryError, OSError):
    """The output cannot be written, or is something that must not be overwritten."""


class VerifyError(Faults, ValueError):
    """An output differs from what its manifest promises."""


class NotInstalledError(SurgeryError, ImportError):
    """A library that only some commands need is missing; `name` says which, the message how to install it."""
