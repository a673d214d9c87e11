"""Every error that `trainers` raises on purpose, besides those of `surgery` and `evalkit`.

    SurgeryError
    ├── ConfigError    (ValueError)    a training configuration is wrong, whatever the checkpoint
    ├── DataError      (ValueError)    training data cannot be had, cannot be learned from, or overlap
    ├── TrainingError  (RuntimeError)  training cannot start, or cannot go on
    └── RunError       (OSError)       a run's directory cannot be read or written, or must not be touched

A message says what was found, what was expected and what to do.
"""

from __future__ import annotations

from surgery.errors import Faults, SurgeryError


class ConfigError(Faults, ValueError):
    """A configuration is malformed; `faults` lists everything that is wrong with it."""


class DataError(Faults, ValueError):
    """Training data are malformed, empty, too long or not held apart; `faults` lists everything found."""


class TrainingError(SurgeryError, RuntimeError):
    """A library is missing, a checkpoint cannot be trained, or a loss is no longer finite."""


class RunError(SurgeryError, OSError):
    """The directory of a run cannot be read or written, belongs to another configuration, or is in use."""
