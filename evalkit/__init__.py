"""Scores checkpoints in and out of distribution, many at a time.

`evaluate` and `sweep` are the command line's verbs. A task of one's own is a subclass of `Task` that gives `Grade`s; an
`Evaluation` and a `Scorer` are for programs that score models as they come.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalkit.api import evaluate
    from evalkit.evaluation import Evaluation
    from evalkit.scorer import Scorer
    from evalkit.sweeps.sweep import sweep
    from evalkit.task import Grade, Task

__all__ = ["Evaluation", "Grade", "Scorer", "Task", "evaluate", "sweep"]

_HOMES = {
    "Evaluation": "evaluation",
    "Grade": "task",
    "Scorer": "scorer",
    "Task": "task",
    "evaluate": "api",
    "sweep": "sweeps.sweep",
}


def __getattr__(name: str) -> Any:
    """Each name is imported when it is first used, so that `surgery --help` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"evalkit.{_HOMES[name]}"), name)
